"""The accelerated video predictor: sam2's own, with the steps of a frame taken as a profile says."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from probes.errors import InputError
from probes.frames import Pixels
from probes.seam import Moment
from probes.video import EndOfVideo
from sparsity.acceleration.camera import Camera, Masks, track_together
from sparsity.acceleration.decode import decode, hand_out
from sparsity.acceleration.encode import encode, encode_whole, publish
from sparsity.acceleration.recall import recall
from sparsity.acceleration.report import Report
from sparsity.acceleration.route import route
from sparsity.acceleration.session import (
    LAST_REPORTED,
    Corrections,
    Frame,
    History,
    Outputs,
    Session,
    WindowChooser,
    alone,
    check_kept,
    forget_results,
)
from sparsity.acceleration.videos import Begun, Tracked, track_all
from sparsity.techniques import KEY


class EfficientSAM2VideoPredictor(Begun):
    """SAM 2's video predictor with sparse window routing, sparse memory retrieval and exact rewrites.

    Made by `accelerate` from a stock predictor, whose modules it shares and leaves untouched. Methods and
    signatures are sam2's. All state of a video lives in its ``inference_state``, so any number of threads may track,
    each with states of its own.

    Parts of the model that aren't sam2's own (adapters, hooks, replaced modules or methods) run as they are, in place
    of rewrites; `report` names them.

    Attributes
    ----------
    client, stock, parts, seam
        See `sparsity.acceleration.sharing.Shared`.
    """

    def report(self, inference_state: dict[str, Any]) -> Report:
        """What was done so far for a video: windows, keys, reasons and object scores, frame by frame."""
        return self.session(inference_state).report

    def choose_windows(
        self, inference_state: dict[str, Any], chooser: WindowChooser | None
    ) -> None:
        """Let `chooser` (frame index -> windows, or None for a dense frame) route instead of the profile's rule.

        It may give a `sparsity.techniques.routing.Decision` of cells too. For benchmarks with fixed windows or with the
        routes of another run; None restores the rule. A rolling refresh adds its own to
        them.
        """
        self.session(inference_state).chooser = chooser

    def forward_image(self, img_batch: Tensor) -> dict[str, Any]:
        """Features of pictures ``[B, 3, S, S]``, like stock; of one, or of one each of several videos, by exact rewrites,
        where the profile has them."""
        made = encode_whole(self.parts, img_batch)
        return super().forward_image(img_batch) if made is None else made

    # ------------------------------------------------------------------ sessions

    def session(self, state: dict[str, Any]) -> Session:
        """Our entry in a video's state; begun here when somebody else made the state.

        Set its `history` to ``"bounded"`` to have results dropped that no future frame reads.
        """
        if KEY not in state:
            report = Report(**self.parts.here.used.reported)
            state[KEY] = Session(report, last_reported=LAST_REPORTED)
        found: Session = state[KEY]
        return found

    def reset_state(self, inference_state: dict[str, Any]) -> None:
        """Forget all objects and results of a video, like stock."""
        old = self.session(inference_state)
        with alone(old):
            super().reset_state(inference_state)
        inference_state[KEY] = Session(
            Report(**self.parts.here.used.reported),
            old.history,
            old.corrections,
            old.last_reported,
            old.chooser,
            published=old.published,
        )

    def take_up(self, inference_state: dict[str, Any]) -> None:
        """Go on with a state of another process as if it was of this one, so that windows take over what theirs gave there.

        The caller vouches that weights, number format and profile are the same. Without this the next frame is dense, as
        what another process made may be of others.
        """
        session = self.session(inference_state)
        with self.parts.watched(session):
            self.parts.look()
            session.take_up(self.parts.made)

    def propagate_in_video(
        self,
        inference_state: dict[str, Any],
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """Track all objects through the video, like stock; ends where a stream of frames ends."""
        session = self.session(inference_state)
        session.begin_pass()
        vars(session.report).update(self.parts.here.used.reported)
        if inference_state["num_frames"] < sys.maxsize:
            session.report.warn_beyond(
                inference_state["num_frames"], len(inference_state["obj_ids"])
            )
        if reverse and inference_state["num_frames"] == sys.maxsize:
            raise InputError(
                "a stream of frames was given; reverse tracking needs a video whose frames can be revisited"
            )
        frames = super().propagate_in_video(
            inference_state, start_frame_idx, max_frame_num_to_track, reverse
        )
        while True:
            with alone(session, passes=True):
                try:
                    frame, ids, masks = next(frames)
                except (EndOfVideo, StopIteration):
                    return
                self._tracked(session, inference_state, frame, reverse)
            yield frame, ids, masks

    @torch.inference_mode()
    def track_into(self, inference_state: dict[str, Any], frame_idx: int) -> Tensor:
        """Track all objects into one frame and return their mask logits ``[objects, 1, H, W]`` at the video's size.

        Prompts that were given since are taken over first. For streams, whose frames come one by one.
        """
        session, reverse = self.session(inference_state), False
        vars(session.report).update(self.parts.here.used.reported)
        with alone(session, passes=True):
            self.propagate_in_video_preflight(inference_state)
            masks = []
            for index, outputs in inference_state["output_dict_per_obj"].items():
                found = outputs["cond_frame_outputs"].get(frame_idx)
                if found is None:
                    found, logits = self._run_single_frame_inference(
                        inference_state, outputs, frame_idx, 1, False, None, None, reverse, True
                    )
                    outputs["non_cond_frame_outputs"][frame_idx] = found
                else:
                    logits = found["pred_masks"].to(inference_state["device"])
                inference_state["frames_tracked_per_obj"][index][frame_idx] = {"reverse": reverse}
                masks.append(logits)
            self._tracked(session, inference_state, frame_idx, reverse)
            _, whole = self._get_orig_video_res_output(inference_state, torch.cat(masks))
        found_masks: Tensor = whole
        return found_masks

    def _tracked(self, session: Session, state: dict[str, Any], frame: int, reverse: bool) -> None:
        """Note in the report what was prompted on a frame, and forget what no future frame reads."""
        session.note_prompts(state, frame, reverse, self.parts.grid)
        if session.watch is not None:
            session.watch.close(frame, reverse, session.report.lately_beyond)
        if session.history == "bounded":
            reach = self.memory_temporal_stride_for_eval * self.num_maskmem
            reach = max(reach, self.max_obj_ptrs_in_encoder)
            after = frame - 1 if reverse else frame + 1

            def stay(outputs: Outputs) -> tuple[int, ...]:
                kept = self.parts.kept(outputs, after, reverse)
                return () if kept is None else kept.frames

            forget_results(state, frame, reverse, reach, stay)

    def camera(
        self,
        size: tuple[int, int],
        *,
        history: History = "bounded",
        corrections: Corrections = "keep",
    ) -> Camera:
        """Begin a camera, whose frames are pushed one by one.

        Parameters
        ----------
        size
            Height and width of its frames, in pixels.
        history, corrections
            As `init_state` takes them.

        Raises
        ------
        InputError
            One of them can't be used.
        """
        check_kept(history, corrections)
        return Camera(self, size, history=history, corrections=corrections)

    def track_cameras(self, frames: Mapping[Camera, Pixels]) -> dict[Camera, Masks]:
        """Push a frame to each of several cameras and track its objects, the frames encoded in one batch where possible.

        A frame whose windows are all computed takes part; one that leaves windows out is encoded by itself, as it leaves
        out others than the next, and so is every one in int8. `FrameReport.encoded_together`
        says of each. Masks are those of cameras alone but for rounding: a product of more rows may be summed in another order.

        Parameters
        ----------
        frames
            By camera a frame as `Camera.track` takes it: cameras of this predictor, of any sizes, with or without objects.

        Returns
        -------
        dict
            By camera what `Camera.track` gives.

        Raises
        ------
        InputError
            It is no dict, a camera is of another predictor or in use in another thread, or a frame isn't as its camera's;
            no camera has been advanced then.
        """
        return track_together(self, frames)

    def track_videos(self, states: Sequence[dict[str, Any]]) -> Iterator[Tracked]:
        """Track all objects of several prompted videos, a frame of each in turn.

        Frames whose windows are all computed are encoded in one batch with those of the other videos, as `track_cameras`
        does; masks are those of `propagate_in_video` but for rounding. Videos may be of any sizes and lengths.

        Parameters
        ----------
        states
            Of `init_state`, a video each.

        Yields
        ------
        tuple
            Which of the videos, frame, object ids, mask logits ``[objects, 1, H, W]``.

        Raises
        ------
        InputError
            No list is given, or a state twice, or one without an object; before any work.
        """
        return track_all(self, states)

    def add_new_points_or_box(
        self, inference_state: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Prompt an object with points or a box, like stock."""
        with alone(self.session(inference_state)), self._correcting(inference_state):
            return super().add_new_points_or_box(inference_state, *args, **kwargs)

    def add_new_mask(self, inference_state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Prompt an object with a mask, like stock."""
        with alone(self.session(inference_state)), self._correcting(inference_state):
            return super().add_new_mask(inference_state, *args, **kwargs)

    @contextmanager
    def _correcting(self, state: dict[str, Any]) -> Iterator[None]:
        """Let sam2 make a tracked frame that is prompted now a conditioning one, where corrections are kept."""
        here = self.parts.here
        before, here.keeps = here.keeps, self.session(state).corrections == "keep"
        try:
            yield
        finally:
            here.keeps = before

    @property
    def add_all_frames_to_correct_as_cond(self) -> bool:
        """sam2's setting; on for as long as a prompt is given to a video whose corrections are kept."""
        return self.parts.here.keeps or self.__dict__["add_all_frames_to_correct_as_cond"]

    @add_all_frames_to_correct_as_cond.setter
    def add_all_frames_to_correct_as_cond(self, value: bool) -> None:
        self.__dict__["add_all_frames_to_correct_as_cond"] = value

    def _clear_obj_non_cond_mem_around_input(
        self, inference_state: dict[str, Any], frame_idx: int, obj_idx: int
    ) -> None:
        """Drop an object's results around a frame, which sam2 1.1.0 asks for where ``clear_non_cond_mem_around_input`` is set."""
        results = inference_state["output_dict_per_obj"][obj_idx]["non_cond_frame_outputs"]
        reach = self.memory_temporal_stride_for_eval * self.num_maskmem
        for t in [t for t in results if abs(t - frame_idx) <= reach]:
            del results[t]

    def remove_object(self, inference_state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Remove an object, like stock; with the last one results are forgotten, but not what was reported and watched."""
        before = self.session(inference_state)
        with alone(before):
            found = super().remove_object(inference_state, *args, **kwargs)
        after = self.session(inference_state)
        after.report, after.watch = before.report, before.watch
        return found

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
        prompted = point_inputs is not None or mask_inputs is not None
        tracking = not (is_init_cond_frame or prompted) and run_mem_encoder
        session, ids = self.session(inference_state), inference_state["obj_idx_to_id"]
        per_object = inference_state["output_dict_per_obj"]
        index = next((i for i, outputs in per_object.items() if outputs is output_dict), None)
        if not tracking or index is None:
            session.ahead.clear()  # made before this prompt
            with self.seam.at(Moment(frame_idx, () if index is None else (ids[index],), reverse)):
                result, logits = super()._run_single_frame_inference(
                    inference_state, output_dict, frame_idx, batch_size, is_init_cond_frame,
                    point_inputs, mask_inputs, reverse, run_mem_encoder, prev_sam_mask_logits,
                )  # fmt: skip
            if mask_inputs is None and self.parts.here.ious is not None:
                result[KEY] = {"ious": self.parts.here.ious[0].tolist()}
            return result, logits
        if not output_dict["cond_frame_outputs"]:
            self._get_image_feature(inference_state, frame_idx, batch_size)  # as stock, then fails
            raise InputError(
                f"object {ids[index]} lost its last prompt before frame {frame_idx}; "
                "expected every tracked object to have one; prompt it again, or remove it, and propagate anew"
            )
        found = session.tracked_ahead(index, frame_idx, reverse)
        if found is not None:
            return found
        with self.parts.watched(session):
            if session.corrections == "keep":
                found = self.parts.known(inference_state, index, frame_idx, reverse)
                if found is not None:
                    return found
            with self.parts.tracking(inference_state, index, frame_idx, reverse) as frame:
                session.report.changed = self.parts.here.looked or {}
                route(self.parts, session, frame)
                batch, logits = super()._run_single_frame_inference(
                    inference_state, output_dict, frame_idx, len(frame.objects), False, None, None, reverse, True
                )  # fmt: skip
                first, *others = hand_out(self.parts, session, frame, batch, logits)
            watch = session.watch
            if watch is not None and watch.looks_at(frame_idx, reverse, frame.decision):
                watch.found.update(self._lost(frame, logits))
        for i, result in zip(frame.objects[1:], others, strict=True):
            session.ahead[i] = frame_idx, reverse, result
        return first

    def _lost(self, frame: Frame, logits: Tensor) -> dict[Any, float]:
        """Points of agreement, by object, that a frame loses against the same one with every window and key.

        Parameters
        ----------
        frame
            That was just tracked; its result isn't in the memory yet.
        logits
            Mask logits, ``[objects, 1, h, w]``.
        """
        if self.seam.watched:  # who listens or edits would be told twice
            return {}
        with self.parts.beside(frame) as again:
            _, whole = super()._run_single_frame_inference(
                again.state, again.outputs[0], frame.index, len(frame.objects), False, None, None, frame.reverse, False
            )  # fmt: skip
        given, dense = (
            self._get_orig_video_res_output(again.state, one)[1][:, 0] > 0
            for one in (logits, whole)
        )
        union = (given | dense).sum((1, 2))
        agreed = (given & dense).sum((1, 2)) / union.clamp(min=1)
        lost = torch.where(union > 0, 100 * (1 - agreed), 0.0)
        return dict(zip(frame.ids, lost.tolist(), strict=True))

    def _get_image_feature(
        self, inference_state: dict[str, Any], frame_idx: int, batch_size: int
    ) -> tuple[Any, ...]:
        """Features of a frame: routed inside a tracking call that decided so, dense everywhere else."""
        session, frame = self.session(inference_state), self.parts.here.frame
        if frame is None or frame.index != frame_idx or frame.state is not inference_state:
            frame = Frame(inference_state, frame_idx, self.parts.grid)
            self.parts.resize(inference_state)
        own = encode(self.parts, session, frame)
        if own is not None:
            routed = {**inference_state, "cached_features": {frame_idx: own}}
            return super()._get_image_feature(routed, frame_idx, batch_size)
        known = frame_idx in inference_state["cached_features"]
        with self.parts.encoding((session, frame)):
            found = super()._get_image_feature(inference_state, frame_idx, batch_size)
        if not known and not self.seam.editors("encoder."):  # or else they go with the edit
            publish(self.parts, session, frame)
        return found

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
        """Condition features on memory: by kept tokens on tracked frames; where a client tracks by itself, by all."""
        frame, alone = self.parts.here.frame, current_vision_feats[-1].shape[1] == 1
        if (
            frame is None
            and self.parts.rewritten("memory attention")
            and alone
            and not is_init_cond_frame
        ):
            state: dict[str, Any] = {"output_dict_per_obj": {}, "obj_idx_to_id": {}}
            frame = Frame(
                state, frame_idx, self.parts.grid, track_in_reverse, outputs=[output_dict]
            )
        if frame is None or not self.parts.reads_memory:
            return super()._prepare_memory_conditioned_features(
                frame_idx, is_init_cond_frame, current_vision_feats, current_vision_pos_embeds, feat_sizes,
                output_dict, num_frames, track_in_reverse,
            )  # fmt: skip
        feature, position = current_vision_feats[-1][:, 0], current_vision_pos_embeds[-1][:, 0]
        x = recall(self.parts, frame, num_frames, feature, position)
        return x.permute(0, 2, 1).view(len(x), self.hidden_dim, *feat_sizes[-1])

    def _forward_sam_heads(
        self,
        backbone_features: Tensor,
        point_inputs: Any = None,
        mask_inputs: Any = None,
        high_res_features: list[Tensor] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Tensor, ...]:
        """sam2's decoding; on tracked frames also note candidate masks and decoder attention for routing."""
        heads, frame = super()._forward_sam_heads, self.parts.here.frame
        if frame is None:
            found = heads(
                backbone_features, point_inputs, mask_inputs, high_res_features, multimask_output
            )
            self.parts.here.ious = found[2]
            return found
        return decode(
            self.parts, frame, heads, backbone_features, high_res_features, multimask_output
        )

    def _encode_new_memory(
        self,
        current_vision_feats: list[Tensor],
        feat_sizes: list[tuple[int, int]],
        pred_masks_high_res: Tensor,
        object_score_logits: Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode masks and features into memory, like stock."""
        encode_memory, size = super()._encode_new_memory, feat_sizes[-1]

        def memory(given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
            feature, masks, scores = given
            return encode_memory([feature], [size], masks, scores, is_mask_from_pts)

        given = current_vision_feats[-1], pred_masks_high_res, object_score_logits
        found: tuple[Tensor, list[Tensor]] = self.parts.run(
            ("memory encoder", tuple(size), is_mask_from_pts), memory, given
        )
        return found
