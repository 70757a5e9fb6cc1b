"""The accelerated video predictor: sam2's own predictor with the decisions of a profile taken in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from probes.errors import InputError
from probes.layout import memory_layout
from probes.seam import Moment, Seam
from probes.video import EndOfVideo, ModelFrames, open_video
from sparsity.acceleration.bank import Bank, collect
from sparsity.acceleration.decisions import decide_frame
from sparsity.acceleration.encoder import Encoder, Routing, window_grid
from sparsity.acceleration.fit import check_fit
from sparsity.acceleration.memory import Readers, Recall, SparseMemoryAttention
from sparsity.acceleration.pruning import kept_tokens, note_keys, remember_choice
from sparsity.acceleration.report import ObjectReport, Report
from sparsity.acceleration.saliency import token_to_image
from sparsity.acceleration.session import (
    KEY,
    FeatureKind,
    FrameExtras,
    Session,
    WindowChooser,
    new_state,
)
from sparsity.acceleration.shortcuts import ShortcutFunction, load_shortcut
from sparsity.acceleration.windows import window_tokens
from sparsity.profile import Memory, Profile, load_profile
from sparsity.routing import Decision, object_cues
from sparsity.window_cues import token_logits

STOCK_PROFILE = load_profile("dense")

MOST_OBJECTS = 8
"""Objects that are tracked in one pass; more are tracked in several."""


@dataclass
class _Tracked:
    """Objects that one pass tracks into a frame; stands in for sam2's ``output_dict`` on the way down."""

    outputs: list[dict[str, dict[int, Any]]]
    reverse: bool
    windows: tuple[int, ...] | None = None
    candidates: Tensor | None = None
    best: Tensor | None = None
    saliency: Tensor | None = None
    banks: list[Bank] = field(default_factory=list)
    recalls: list[Recall] = field(default_factory=list)


class EfficientSAM2VideoPredictor(SAM2VideoPredictor):
    """SAM 2's video predictor with sparse window routing, sparse memory retrieval and exact rewrites.

    Made by `accelerate` from a stock predictor, whose modules it shares and leaves untouched. Methods and
    signatures are sam2's. All state of a video lives in its ``inference_state``.
    """

    _stock: SAM2VideoPredictor
    _profile: Profile
    _forced: bool
    _seam: Seam
    _derived: dict[Any, Any]
    _shortcut: ShortcutFunction | None

    # ------------------------------------------------------------------ profile

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self._profile

    @contextmanager
    def use(self, profile: Profile | str | Path | None, *, force: bool = False) -> Iterator[None]:
        """Use another profile for the length of the context; None means stock behaviour, bit for bit.

        Raises
        ------
        InputError
            The profile was made for another model (and `force` is not set), or asks for what this model
            cannot have.
        """
        before = self._profile, self._forced, self._shortcut
        self._adopt(STOCK_PROFILE if profile is None else load_profile(profile), force)
        try:
            yield
        finally:
            self._profile, self._forced, self._shortcut = before

    def report(self, inference_state: dict[str, Any]) -> Report:
        """What was done so far for a video: windows, keys, reasons and object scores, frame by frame."""
        return self._session(inference_state).report

    def choose_windows(
        self, inference_state: dict[str, Any], chooser: WindowChooser | None
    ) -> None:
        """Let `chooser` (frame index -> windows, or None for a dense frame) route instead of the profile's rule.

        For benchmarks with fixed windows or with the routes of another run; None restores the rule.
        """
        self._session(inference_state).chooser = chooser

    def _adopt(self, profile: Profile, force: bool) -> None:
        forced = check_fit(profile, self, force)
        trunk = self.image_encoder.trunk
        channels = trunk.blocks[trunk.stage_ends[2]].dim_out
        routed = profile.windows is not None
        shortcut = load_shortcut(profile.shortcut, channels, self.device) if routed else None
        self._profile, self._forced, self._shortcut = profile, forced, shortcut

    # ------------------------------------------------------------------ sessions

    @torch.inference_mode()
    def init_state(
        self,
        video_path: Any,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
        *,
        history: Literal["full", "bounded"] = "full",
    ) -> dict[str, Any]:
        """Begin a video.

        Parameters
        ----------
        video_path
            Whatever `probes.video.open_video` opens: a folder of frames, a video file, an array
            ``[T, H, W, 3]``, or an iterator of frames.
        offload_video_to_cpu, async_loading_frames
            Accepted for sam2's sake; frames are always decoded when they are needed.
        history
            ``"full"`` keeps every result, as stock does; ``"bounded"`` drops those that no future frame
            reads, so that memory stays flat however long the video is.
        """
        source = open_video(video_path)
        device = self.device
        state = new_state(
            source,
            ModelFrames(source, self.image_size, "cpu" if offload_video_to_cpu else device),
            device,
            torch.device("cpu") if offload_state_to_cpu else device,
            offload_video_to_cpu,
        )
        self._session(state).history = history
        self._get_image_feature(state, frame_idx=0, batch_size=1)
        return state

    def _session(self, state: dict[str, Any]) -> Session:
        """Our entry in a video's state; begun here when the state was made by the stock predictor."""
        if KEY not in state:
            state[KEY] = Session(Report(self._profile.name, self._forced))
        return state[KEY]

    def reset_state(self, inference_state: dict[str, Any]) -> None:
        """Forget all objects and results of a video, like stock."""
        super().reset_state(inference_state)
        old = self._session(inference_state)
        inference_state[KEY] = Session(
            Report(self._profile.name, self._forced),
            old.history,
            old.chooser,
            features=old.features,
        )

    def propagate_in_video(
        self,
        inference_state: dict[str, Any],
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """Track all objects through the video, like stock; ends where a stream of frames ends."""
        if self.clear_non_cond_mem_around_input:
            raise InputError(
                "clear_non_cond_mem_around_input is set, but sam2 1.1.0 calls a method for it that does not exist; "
                "build the predictor without it"
            )
        session = self._session(inference_state)
        session.begin_pass()
        session.report.profile, session.report.forced = self._profile.name, self._forced
        if reverse and inference_state["num_frames"] == sys.maxsize:
            raise InputError(
                "a stream of frames was given; reverse tracking needs a video whose frames can be revisited"
            )
        frames = super().propagate_in_video(
            inference_state, start_frame_idx, max_frame_num_to_track, reverse
        )
        try:
            for frame, ids, masks in frames:
                self._note_prompts(inference_state, frame, reverse)
                if session.history == "bounded":
                    self._forget(inference_state, frame, reverse)
                yield frame, ids, masks
        except EndOfVideo:
            return

    def _note_prompts(self, state: dict[str, Any], frame: int, reverse: bool) -> None:
        """Enter objects whose result on this frame is a prompt into the report."""
        session, total = self._session(state), window_grid(self).count
        report = session.frame_report(frame, reverse, Decision(None, "prompt"), total)
        for index, outputs in state["output_dict_per_obj"].items():
            out = outputs["cond_frame_outputs"].get(frame)
            if out is not None:
                object_id = state["obj_idx_to_id"][index]
                report.objects[object_id] = ObjectReport(float(out["object_score_logits"].max()))

    def _forget(self, state: dict[str, Any], frame: int, reverse: bool) -> None:
        """Drop results that lie further back than any memory frame or pointer of a later frame."""
        stride = self.memory_temporal_stride_for_eval
        reach = max(stride * self.num_maskmem, self.max_obj_ptrs_in_encoder)
        for outputs in state["output_dict_per_obj"].values():
            results = outputs["non_cond_frame_outputs"]
            old = [t for t in results if (t - frame if reverse else frame - t) > reach]
            for t in old:
                del results[t]

    # ------------------------------------------------------------------ one frame

    def _run_single_frame_inference(
        self,
        inference_state: dict[str, Any],
        output_dict: dict[str, dict[int, Any]],
        frame_idx: int,
        batch_size: int,
        is_init_cond_frame: bool,
        point_inputs: Any,
        mask_inputs: Any,
        reverse: bool,
        run_mem_encoder: bool,
        prev_sam_mask_logits: Tensor | None = None,
    ) -> tuple[dict[str, Any], Tensor]:
        """Track one object into a frame as the profile says; prompted frames go the stock way."""
        tracking = (
            not is_init_cond_frame
            and point_inputs is None
            and mask_inputs is None
            and run_mem_encoder
        )
        session = self._session(inference_state)
        per_object = inference_state["output_dict_per_obj"]
        index = next((i for i, outputs in per_object.items() if outputs is output_dict), None)
        if not tracking or index is None:
            ids = () if index is None else (inference_state["obj_idx_to_id"][index],)
            with self._seam.at(Moment(frame_idx, ids, reverse)):
                return super()._run_single_frame_inference(
                    inference_state, output_dict, frame_idx, batch_size, is_init_cond_frame,
                    point_inputs, mask_inputs, reverse, run_mem_encoder, prev_sam_mask_logits,
                )  # fmt: skip
        found = session.ahead.pop(index, None)
        if found is not None and found[:2] == (frame_idx, reverse):
            return found[2]
        session.ahead.clear()
        group = [index]
        if self._profile.technique("batched_objects") and self._own_memory_attention:
            waiting = (
                i
                for i in per_object
                if i > index and frame_idx not in per_object[i]["cond_frame_outputs"]
            )
            group += list(waiting)[: MOST_OBJECTS - 1]
        results = self._track_together(inference_state, session, group, frame_idx, reverse)
        session.ahead.update(
            {
                i: (frame_idx, reverse, result)
                for i, result in zip(group[1:], results[1:], strict=True)
            }
        )
        return results[0]

    def _track_together(
        self, state: dict[str, Any], session: Session, group: list[int], frame: int, reverse: bool
    ) -> list[tuple[dict[str, Any], Tensor]]:
        """Track several objects into a frame in one pass and give each its part."""
        if session.decision is None or session.decision[:2] != (frame, reverse):
            session.decision = frame, reverse, decide_frame(self, state, session, frame, reverse)
        decision = session.decision[2]
        tracked = _Tracked(
            [state["output_dict_per_obj"][i] for i in group], reverse, decision.windows
        )
        ids = tuple(state["obj_idx_to_id"][i] for i in group)
        session.routing = decision
        try:
            with self._seam.at(Moment(frame, ids, reverse)):
                together, logits = super()._run_single_frame_inference(
                    inference_state=state, output_dict=tracked, frame_idx=frame, batch_size=len(group),
                    is_init_cond_frame=False, point_inputs=None, mask_inputs=None, reverse=reverse,
                    run_mem_encoder=True,
                )  # fmt: skip
        finally:
            session.routing = None
        results = []
        for b, index in enumerate(group):
            part = {key: _slice(value, b) for key, value in together.items()}
            part[KEY] = self._extras(tracked, b, part, frame, reverse)
            results.append((part, logits[b : b + 1]))
            report = session.frame_report(frame, reverse, decision, window_grid(self).count)
            report.objects[state["obj_idx_to_id"][index]] = self._object_report(tracked, b, part)
        return results

    def _track_step(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """sam2's step; on tracked frames also note candidate masks and decoder attention for routing."""
        tracked = args[7] if len(args) > 7 else kwargs["output_dict"]
        if not isinstance(tracked, _Tracked) or self._profile.windows is None:
            return super()._track_step(*args, **kwargs)
        with token_to_image(self.sam_mask_decoder) as noted:
            result = super()._track_step(*args, **kwargs)
        tracked.candidates, tracked.best = result[1][0], result[1][3][:, 0]
        tracked.saliency = noted.saliency(self.sam_image_embedding_size)
        return result

    def _extras(
        self, tracked: _Tracked, b: int, part: dict[str, Any], frame: int, reverse: bool
    ) -> FrameExtras:
        """Reduce an object's result to its routing cues."""
        windows = self._profile.windows
        before = tracked.outputs[b]["non_cond_frame_outputs"].get(
            frame + 1 if reverse else frame - 1
        )
        added = tracked.recalls[b].added if tracked.recalls else None
        if before is not None and KEY in before:
            before[KEY].added = None  # handed on; it is as large as a frame's features
        if windows is None or tracked.candidates is None or tracked.best is None:
            return FrameExtras(added=added)
        last = None
        router, jumps = self._profile.router, self._profile.guard.mask_jump is not None
        if (jumps or router is not None) and before is not None:
            last = before["pred_masks"].to(tracked.best.device)[0, 0]
        cues = object_cues(
            tracked.candidates[b],
            tracked.best[b],
            last,
            None if tracked.saliency is None else tracked.saliency[b],
            part["object_score_logits"].max(),
            window_grid(self),
            windows,
            router,
            None if router is None else token_logits(tracked.candidates[b], tracked.best[b]),
        )
        return FrameExtras(cues, windows, added=added)

    def _object_report(self, tracked: _Tracked, b: int, part: dict[str, Any]) -> ObjectReport:
        report = ObjectReport(float(part["object_score_logits"].max()))
        if tracked.recalls:
            note_keys(report, tracked.banks[b], tracked.recalls[b], self._memory)
            report.queries_share = tracked.recalls[b].queries_share
        return report

    # ------------------------------------------------------------------ image features

    def _get_image_feature(
        self, inference_state: dict[str, Any], frame_idx: int, batch_size: int
    ) -> tuple[Any, ...]:
        """Features of a frame: routed inside a tracking call that decided so, dense everywhere else."""
        session = self._session(inference_state)
        routed = session.routing
        windows = None if routed is None else routed.windows
        wanted = FeatureKind(windows, self._profile.technique("encoder"))
        cache = inference_state["cached_features"]
        if frame_idx in cache and not session.features.serves(wanted):
            inference_state["cached_features"] = cache = {}
        if frame_idx not in cache:
            keep = (
                self._profile.windows is not None
                and self._profile.shortcut.kind == "cached"
                and windows is None
            )
            if windows is not None or wanted.exact or keep:
                image = inference_state["images"][frame_idx]
                image = image.to(inference_state["device"]).float().unsqueeze(0)
                shortcut = self._shortcut
                if shortcut is None and session.change is not None:
                    shortcut = _add(session.change)
                features, change = self._encoder(
                    image, Routing(windows, shortcut, keep), exact=wanted.exact
                )
                inference_state["cached_features"] = {frame_idx: (image, features)}
                session.change = session.change if change is None else change
            session.features = wanted
        if windows is None:
            session.last_dense = frame_idx
        return super()._get_image_feature(inference_state, frame_idx, batch_size)

    # ------------------------------------------------------------------ memory

    @property
    def _own_memory_attention(self) -> bool:
        """Whether memory attention runs here; else stock's does, one object at a time."""
        wanted = self._profile.memory is not None or self._profile.technique("memory_attention")
        return wanted and self.num_maskmem > 0

    @property
    def _memory(self) -> Memory:
        """SMR's settings; all tokens where the profile has none."""
        return self._profile.memory or Memory(keep=1.0)

    def _prepare_memory_conditioned_features(
        self,
        frame_idx: int,
        is_init_cond_frame: bool,
        current_vision_feats: list[Tensor],
        current_vision_pos_embeds: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        output_dict: Any,
        num_frames: int,
        track_in_reverse: bool = False,
    ) -> Tensor:
        """Condition features on memory: by kept tokens on tracked frames, the stock way elsewhere."""
        if not isinstance(output_dict, _Tracked):
            return super()._prepare_memory_conditioned_features(
                frame_idx, is_init_cond_frame, current_vision_feats, current_vision_pos_embeds, feat_sizes,
                output_dict, num_frames, track_in_reverse,
            )  # fmt: skip
        tracked = output_dict
        layouts = tuple(
            memory_layout(self, frame_idx, outputs, num_frames, track_in_reverse)
            for outputs in tracked.outputs
        )
        self._seam.moment = replace(self._seam.moment, layouts=layouts)
        if not self._own_memory_attention:
            (outputs,) = tracked.outputs
            return super()._prepare_memory_conditioned_features(
                frame_idx, is_init_cond_frame, current_vision_feats, current_vision_pos_embeds, feat_sizes,
                outputs, num_frames, track_in_reverse,
            )  # fmt: skip
        exact = self._profile.technique("memory_attention")
        attention, memory = self._attention, self._memory
        stride = self.memory_temporal_stride_for_eval
        with torch.autocast(self.device.type, enabled=False):
            for outputs, layout in zip(tracked.outputs, layouts, strict=True):
                tokens, measure = kept_tokens(layout, outputs, memory, stride, track_in_reverse)
                bank = collect(self, attention.dtype, layout, outputs, tokens, measure)
                tracked.banks.append(bank)
            x, tracked.recalls = attention(
                current_vision_feats[-1][:, 0], current_vision_pos_embeds[-1][:, 0], tracked.banks, memory,
                exact=exact, seed=frame_idx, readers=self._readers(tracked, frame_idx),
            )  # fmt: skip
        for outputs, bank, recall in zip(
            tracked.outputs, tracked.banks, tracked.recalls, strict=True
        ):
            remember_choice(outputs, bank, recall, memory, track_in_reverse)
        return x.permute(0, 2, 1).view(len(x), self.hidden_dim, *feat_sizes[-1])

    def _readers(self, tracked: _Tracked, frame: int) -> Readers | None:
        """The tokens that read memory on a routed frame, where the profile asks for that and it can be had."""
        if self._memory.readers == "all" or tracked.windows is None:
            return None
        adjacent = frame + 1 if tracked.reverse else frame - 1
        added = []
        for outputs in tracked.outputs:
            extras = outputs["non_cond_frame_outputs"].get(adjacent, {}).get(KEY)
            if extras is None or extras.added is None:
                return None
            added.append(extras.added)
        grid = window_grid(self)
        where = window_tokens(grid.tokens, grid.window, tracked.windows, added[0].device)
        return Readers(where.tokens, torch.stack(added))

    # ------------------------------------------------------------------ weights in the run's dtype

    @property
    def _encoder(self) -> Encoder:
        return self._in_run_dtype("encoder", lambda dtype: Encoder(self, dtype, self._seam))

    @property
    def _attention(self) -> SparseMemoryAttention:
        return self._in_run_dtype(
            "memory", lambda dtype: SparseMemoryAttention(self, dtype, self._seam)
        )

    def _in_run_dtype(self, part: str, make: Any) -> Any:
        """Packed weights of a part for the dtype of this run; dropped when the model's weights change."""
        stamp = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._derived.get("stamp") != stamp:
            self._derived.clear()
            self._derived["stamp"] = stamp
        device = self.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else next(self.parameters()).dtype
        key = (part, dtype, self.image_size)
        if key not in self._derived:
            self._derived[key] = make(dtype)
        return self._derived[key]


def _slice(value: Any, b: int) -> Any:
    """One object's part of a batched result."""
    if isinstance(value, Tensor):
        return value[b : b + 1]
    return [item[b : b + 1] for item in value] if isinstance(value, list) else value


def _add(change: Tensor) -> Any:
    """The cached shortcut: what the last dense frame's blocks changed, added again."""
    return lambda x: x + change
