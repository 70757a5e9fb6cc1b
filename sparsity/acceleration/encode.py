"""Features of pictures: those of a tracked frame with the windows that its decision names, dense ones everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsity.acceleration.model.encoder import Encoder, Encoding
from sparsity.acceleration.model.windows import to_device
from sparsity.acceleration.parts import Parts
from sparsity.acceleration.route import route
from sparsity.acceleration.session import Frame, LastFeatures, RoutedFeatures, Session
from sparsity.techniques.reuse import CHANGE, LastComputed, carried_levels, picture_of
from sparsity.techniques.routing import computed_parts

Entry = tuple[Tensor, dict[str, Any]]
"""A picture ``[1, 3, S, S]`` and its features, as sam2's ``cached_features`` holds them."""


def encode(parts: Parts, session: Session, frame: Frame) -> Entry | None:
    """Return a frame's features where its decision leaves windows out; None where sam2 asks `encode_whole` for them.

    sam2's contract of ``cached_features`` holds: features that are there are used, whoever put them there, unless we
    did under another profile or with other weights.
    """
    here, cells, known = parts.here, frame.decision.cells, frame.state["cached_features"]
    latest = session.latest if session.latest and frame.decision.carried else None
    if frame.objects and cells is None and latest is None:
        session.routing.last_dense = frame.index
    if frame.index in known:
        made = session.made(known[frame.index][1])
        if made is None or not made.exact:
            return None
        same = made.version == parts.encoder_version and made.resize == here.used.profile.resize
        if here.used.exact and same:
            return None
        del known[frame.index]
    if latest is not None:
        return frame.picture[None].float(), _carried(parts, latest, frame)
    if cells is None:
        session.features = None
        return None
    image, found, encoder = frame.picture, session.features, parts.encoder
    version = encoder.version, parts.seam.edition("encoder.")
    if found is None or not found.serve(frame.index, cells, version, image):
        output = _encoded(parts, encoder, ((session, frame),), image[None].float())
        found = RoutedFeatures(frame.index, cells, version, image, output)
        session.features = found
        _keep_features(parts, session, frame, found.output)
    return image[None].float(), found.output


def _carried(parts: Parts, latest: LastFeatures, frame: Frame) -> dict[str, Any]:
    """Features of an earlier frame, moved to this one as the objects moved."""
    rule = parts.here.used.profile.routing
    assert rule is not None, "it carries"
    masks = []
    for outputs in frame.state["output_dict_per_obj"].values():
        tracked, prompted = outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"]
        step = frame.adjacent - frame.index
        ends = [prompted.get(t) or tracked.get(t) for t in (frame.adjacent, frame.adjacent + step)]
        if None not in ends:
            masks.append(tuple(out["pred_masks"][0, 0] for out in ends))
    since = abs(frame.index - latest.frame)
    levels = carried_levels(latest.output["backbone_fpn"], masks, since, rule.margin_px)
    return {**latest.output, "backbone_fpn": levels, "vision_features": levels[-1]}


def encode_whole(parts: Parts, images: Tensor) -> dict[str, Any] | None:
    """Return the features of pictures ``[B, 3, S, S]``, all windows computed; None where stock's are wanted.

    They are stock's where there are several pictures that are not of a video each, the encoder isn't sam2's own,
    gradients are wanted, or nothing asks for others.
    """
    here = parts.here
    exact, changed = here.used.exact, here.looked
    if not (exact or here.used.carried) or torch.is_grad_enabled():
        return None
    if len(images) != max(1, len(here.encoding)):
        return None
    if changed is None:
        changed = parts.look()
    if "image encoder" in changed or not (exact or here.carried):
        return None
    encoder = parts.encoder
    if here.encoding and here.carried:
        output = _encoded(parts, encoder, here.encoding, images.float())
    else:
        output, _ = encoder(images.float(), Encoding(), exact=exact, changed=changed, run=parts.run)
    return output


def encode_together(
    parts: Parts,
    videos: Sequence[tuple[Session, dict[str, Any], int]],
    forward_image: Callable[[Tensor], dict[str, Any]],
) -> None:
    """Encode the next frames of several videos in one batch, as far as all their windows are computed.

    Each one's features are put where sam2 looks for them; a frame that leaves windows out is encoded when it is tracked.

    Parameters
    ----------
    videos
        What is kept of each, its state, and index of the frame.
    forward_image
        The predictor's.
    """
    if not parts.batches_pictures:
        return
    those = []
    for session, state, index in videos:
        frame = _decided(parts, session, state, index)
        whole = frame.decision.cells is None and not frame.decision.carried
        if whole and index not in state["cached_features"]:
            those.append((session, frame))
    if len(those) < 2:
        return
    images = [frame.picture[None].float() for _, frame in those]
    with parts.encoding(*those):
        made = forward_image(torch.cat(images))
    for n, (session, frame) in enumerate(those):
        # copies, so that what is kept of one video doesn't hold that of all
        levels = [level[n : n + 1].clone() for level in made["backbone_fpn"]]
        positions = [position[n : n + 1] for position in made["vision_pos_enc"]]
        own = {"vision_features": levels[-1], "vision_pos_enc": positions, "backbone_fpn": levels}
        frame.state["cached_features"] = {frame.index: (images[n], {**made, **own})}
        session.features, session.batch = None, (frame.index, len(those))
        publish(parts, session, frame)


def publish(parts: Parts, session: Session, frame: Frame) -> None:
    """Note what made the features that sam2 has just put into its cache."""
    output = frame.state["cached_features"][frame.index][1]
    session.published = output, parts.made
    _keep_features(parts, session, frame, output)


def _keep_features(parts: Parts, session: Session, frame: Frame, output: dict[str, Any]) -> None:
    """Keep a frame's features for those to which they are carried over."""
    rule = parts.here.used.profile.routing
    if rule is not None and rule.every > 1:
        session.latest = LastFeatures(frame.index, output, parts.made)


def _decided(parts: Parts, session: Session, state: dict[str, Any], index: int) -> Frame:
    """Begin a frame and decide what of it is computed, before it is tracked."""
    per_object = state["output_dict_per_obj"].items()
    first = next((i for i, outputs in per_object if outputs["cond_frame_outputs"]), None)
    if first is None:
        parts.resize(state)
        return Frame(state, index, parts.grid)
    with parts.watched(session), parts.tracking(state, first, index, reverse=False) as frame:
        route(parts, session, frame)
    return frame


def _encoded(
    parts: Parts, encoder: Encoder, those: tuple[tuple[Session, Frame], ...], images: Tensor
) -> dict[str, Any]:
    """Encode a frame's picture, or those of dense frames of several videos, and keep what later frames take over."""
    (session, frame), several = those[0], len(those) > 1
    used, cells, carried = parts.here.used, frame.decision.cells, parts.here.carried
    last = session.last
    if cells is None or last is None:
        last = LastComputed(encoder.version, frame.index)
    last.carry(carried)
    encoding = Encoding(cells, used.adapter, CHANGE in carried, used.reused, last)
    output, change = encoder(images, encoding, exact=used.exact, run=parts.run)
    if change is not None:
        last.parts[CHANGE] = (change,)
    for n, (session, frame) in enumerate(those):
        session.last = last.share(n, len(those)) if several else last
        _keep_picture(parts, session.last, session, frame, images[n])
        session.last.frame = frame.index
    return output


def _keep_picture(
    parts: Parts, last: LastComputed, session: Session, frame: Frame, image: Tensor
) -> None:
    """Keep what was computed from what of a picture ``[3, S, S]``, for a rolling refresh."""
    rule, cells = parts.here.used.profile.routing, frame.decision.cells
    if rule is None or rule.refresh is None:
        return
    pictures = session.routing.pictures_of(frame.index, image, rule, frame.grid)
    rows = None
    if cells is not None:
        computed = computed_parts(cells, rule.unit, frame.grid).nonzero()[:, 0]
        rows = to_device(computed, image.device)
    fresh = pictures if rows is None else pictures[rows]
    last.complete(picture_of(rule.unit), rows, fresh)
