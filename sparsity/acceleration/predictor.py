"""The accelerated video predictor: sam2's own predictor with the decisions of a profile taken in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from probes.errors import InputError
from probes.layout import memory_layout
from probes.seam import Moment, Seam
from probes.video import EndOfVideo, ModelFrames, open_video
from sparsity.acceleration import graphs
from sparsity.acceleration.decisions import decide_frame
from sparsity.acceleration.decoding import decode_tracked
from sparsity.acceleration.derived import Derived
from sparsity.acceleration.encoder import Encoder, window_grid
from sparsity.acceleration.features import own_features
from sparsity.acceleration.fit import check_fit
from sparsity.acceleration.graphs import Graphs, settings_of
from sparsity.acceleration.mask_decoder import CastOnceMaskDecoder
from sparsity.acceleration.memory import SparseMemoryAttention
from sparsity.acceleration.memory_encoder import ChannelsLastMemoryEncoder
from sparsity.acceleration.prompt_encoder import ConstantPromptEncoder
from sparsity.acceleration.recall import recall_memory
from sparsity.acceleration.report import Report
from sparsity.acceleration.session import KEY, Session, WindowChooser, forget_results, new_state
from sparsity.acceleration.shortcuts import ShortcutFunction, load_shortcut
from sparsity.acceleration.tracked import Tracked, parts_of_all
from sparsity.profile import Memory, Profile
from sparsity.profiles import load_profile

STOCK_PROFILE = load_profile("dense")

MOST_OBJECTS = 8
"""Objects that are tracked in one pass; more are tracked in several."""


class EfficientSAM2VideoPredictor(SAM2VideoPredictor):
    """SAM 2's video predictor with sparse window routing, sparse memory retrieval and exact rewrites.

    Made by `accelerate` from a stock predictor, whose modules it shares and leaves untouched. Methods and
    signatures are sam2's. All state of a video lives in its ``inference_state``.

    One predictor tracks in one thread at a time. For another thread accelerate the stock predictor once more: the two
    share the weights.
    """

    _stock: SAM2VideoPredictor
    _profile: Profile
    _forced: bool
    _seam: Seam
    _derived: Derived
    _tracked: Tracked | None
    _shortcut: ShortcutFunction | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise InputError(
            f"{type(self).__name__} was called like sam2's class; expected a stock predictor to accelerate; write "
            "accelerate(predictor), or build_efficient_sam2_video_predictor(config, checkpoint)"
        )

    @classmethod
    def sharing(
        cls, stock: SAM2VideoPredictor, profile: Profile, forced: bool
    ) -> EfficientSAM2VideoPredictor:
        """Make one that shares a stock predictor's modules; `accelerate` checks what is given first."""
        shared = cls.__new__(cls)
        shared.__dict__ = {**stock.__dict__, "_modules": dict(stock._modules)}
        shared.__dict__.update(_stock=stock, _seam=Seam(), _derived=Derived(), _tracked=None)
        shared._adopt(profile, forced)
        shared._modules["memory_encoder"] = ChannelsLastMemoryEncoder.sharing(
            stock.memory_encoder, shared._encodes_memory, shared._casting_once
        )
        shared._modules["sam_mask_decoder"] = CastOnceMaskDecoder.sharing(
            stock.sam_mask_decoder, shared._casting_once
        )
        shared._modules["sam_prompt_encoder"] = ConstantPromptEncoder.sharing(
            stock.sam_prompt_encoder, shared._is_unprompted, shared._remember
        )
        return shared

    def __copy__(self) -> EfficientSAM2VideoPredictor:
        """Another one on the same weights, with the same profile."""
        return self.sharing(self._stock, self._profile, self._forced)

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> EfficientSAM2VideoPredictor:
        """Refuse what sam2 would answer with a stock predictor.

        Raises
        ------
        InputError
            Always; the message says what to write instead.
        """
        raise InputError(
            f"{cls.__name__}.from_pretrained({model_id!r}) was called, and sam2 would return a stock predictor; "
            f"expected one to accelerate; write accelerate(SAM2VideoPredictor.from_pretrained({model_id!r}))"
        )

    # ------------------------------------------------------------------ profile

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self._profile

    @contextmanager
    def use(self, profile: Profile | str | Path | None, *, force: bool = False) -> Iterator[None]:
        """Use another profile for the length of the context; None means stock behaviour, bit for bit.

        What counts is the profile in use while a frame is tracked: consume `propagate_in_video` inside the context.

        Raises
        ------
        InputError
            The profile was made for another model or input size (and `force` is not set), or asks for what this
            model cannot have.
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

        It may give a `sparsity.routing.Decision` too, to trim windows to some of their cells. For benchmarks with
        fixed windows or with the routes of another run; None restores the rule. A rolling refresh adds its own to
        them.
        """
        self._session(inference_state).chooser = chooser

    def weights_changed(self) -> None:
        """Take over weights that were changed through ``parameter.data`` (by ``p.data.copy_``, for instance).

        All other changes are noticed: new tensors, ``load_state_dict``, operations in place.
        """
        self._derived.forget()

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
        offload_video_to_cpu
            Keep decoded frames in main memory.
        offload_state_to_cpu
            Keep results there, as in sam2.
        async_loading_frames
            Accepted for sam2's sake; frames are always decoded when they are needed.
        history
            ``"full"`` keeps every result, as stock does; ``"bounded"`` drops those that no future frame
            reads, so that memory stays flat however long the video is, but for a line a frame in the report, of
            which a stream keeps the latest 10,000.

        Raises
        ------
        InputError
            The video can't be opened, or `history` is neither.
        """
        if history not in ("full", "bounded"):
            raise InputError(
                f"history {history!r} given; expected 'full' or 'bounded'; choose one of them"
            )
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
        stride = self.memory_temporal_stride_for_eval
        reach = max(stride * self.num_maskmem, self.max_obj_ptrs_in_encoder)
        try:
            for frame, ids, masks in frames:
                session.note_prompts(inference_state, frame, reverse, window_grid(self))
                if session.history == "bounded":
                    forget_results(inference_state, frame, reverse, reach)
                yield frame, ids, masks
        except EndOfVideo:
            return

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
        if not output_dict["cond_frame_outputs"]:
            raise InputError(
                f"object {inference_state['obj_idx_to_id'][index]} lost its last prompt before frame {frame_idx}; "
                "expected every tracked object to have one; prompt it again, or remove it, and propagate anew"
            )
        found = session.ahead.pop(index, None)
        if found is not None and found[:2] == (frame_idx, reverse):
            return found[2]
        session.ahead.clear()
        group = [index]
        if self._batches_objects:
            prompts = {i: outputs["cond_frame_outputs"] for i, outputs in per_object.items()}
            waiting = (
                i for i, own in prompts.items() if i > index and own and frame_idx not in own
            )
            group += list(waiting)[: MOST_OBJECTS - 1]
        with self._derived.looking_once():
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
        tracked = Tracked(
            [state["output_dict_per_obj"][i] for i in group],
            frame,
            reverse,
            decision.windows,
            decision.cells,
            decision.rescued,
        )
        ids = tuple(state["obj_idx_to_id"][i] for i in group)
        session.routing, self._tracked = decision, tracked
        try:
            with self._seam.at(Moment(frame, ids, reverse)):
                together, logits = super()._run_single_frame_inference(
                    inference_state=state, output_dict=tracked, frame_idx=frame, batch_size=len(group),
                    is_init_cond_frame=False, point_inputs=None, mask_inputs=None, reverse=reverse,
                    run_mem_encoder=True,
                )  # fmt: skip
            parts = parts_of_all(self, tracked, together, self._memory)
        finally:
            session.routing, self._tracked = None, None
        results = []
        report = session.frame_report(frame, reverse, decision, window_grid(self))
        for b, (index, (part, said)) in enumerate(zip(group, parts, strict=True)):
            results.append((part, logits[b : b + 1]))
            report.objects[state["obj_idx_to_id"][index]] = said
        return results

    def _run(self, kind: Hashable, function: Callable[[Any], Any], given: Any) -> Any:
        """Run a part of a tracked frame: as one CUDA graph where these are on and possible, else as it is."""
        wanted = self._tracked is not None and self._profile.technique("cuda_graphs")
        if not wanted or self._seam.observers or not graphs.can_record(self.device):
            return function(given)
        known: Graphs = self._derived.get("graphs", self, lambda dtype: Graphs())
        settings = settings_of(self), settings_of(self.sam_mask_decoder), self._encodes_memory()
        return known.run((kind, settings), function, given, self.device)

    def _forward_sam_heads(
        self,
        backbone_features: Tensor,
        point_inputs: Any = None,
        mask_inputs: Any = None,
        high_res_features: list[Tensor] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Tensor, ...]:
        """sam2's decoding; on tracked frames also note candidate masks and decoder attention for routing."""
        decode, tracked = super()._forward_sam_heads, self._tracked
        if tracked is None:
            return decode(
                backbone_features, point_inputs, mask_inputs, high_res_features, multimask_output
            )
        return decode_tracked(
            self, decode, tracked, backbone_features, high_res_features, multimask_output
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
        encode, size = super()._encode_new_memory, feat_sizes[-1]

        def memory(given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
            feature, masks, scores = given
            return encode([feature], [size], masks, scores, is_mask_from_pts)

        given = current_vision_feats[-1], pred_masks_high_res, object_score_logits
        kind = "memory encoder", tuple(size), is_mask_from_pts
        return self._run(kind, memory, given)

    # ------------------------------------------------------------------ image features

    def _get_image_feature(
        self, inference_state: dict[str, Any], frame_idx: int, batch_size: int
    ) -> tuple[Any, ...]:
        """Features of a frame: routed inside a tracking call that decided so, dense everywhere else."""
        own = own_features(self, inference_state, self._session(inference_state), frame_idx)
        if own is not None:
            cache = {frame_idx: (own.image, own.output)}
            inference_state = {**inference_state, "cached_features": cache}
        return super()._get_image_feature(inference_state, frame_idx, batch_size)

    # ------------------------------------------------------------------ memory

    def _encodes_memory(self) -> bool:
        """Whether the memory encoder's rewrite is on."""
        return self._profile.technique("memory_encoder")

    def _casting_once(self) -> AbstractContextManager[None]:
        """Hold casts of the memory encoder's and the mask decoder's weights, where the rewrite is on."""
        return self._derived.casting_once(self) if self._encodes_memory() else nullcontext()

    def _is_unprompted(self) -> bool:
        """Whether the frame at work has no prompt and what that gives may be remembered."""
        return self._tracked is not None and self._encodes_memory()

    def _remember(self, what: str, make: Callable[[], Any]) -> Any:
        return self._derived.get(what, self, lambda dtype: make())

    @property
    def _own_memory_attention(self) -> bool:
        """Whether memory attention runs here; else stock's does, one object at a time."""
        wanted = self._profile.memory is not None or self._profile.technique("memory_attention")
        return wanted and self.num_maskmem > 0

    @property
    def _batches_objects(self) -> bool:
        """Whether objects are tracked in one pass: not where masks of one batch compete for memory."""
        wanted = self._profile.technique("batched_objects") and self._own_memory_attention
        return wanted and not self.non_overlap_masks_for_mem_enc

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
        if not isinstance(output_dict, Tracked):
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
        feature, position = current_vision_feats[-1][:, 0], current_vision_pos_embeds[-1][:, 0]
        x = recall_memory(self, tracked, layouts, feature, position, frame_idx)
        return x.permute(0, 2, 1).view(len(x), self.hidden_dim, *feat_sizes[-1])

    # ------------------------------------------------------------------ weights in the run's dtype

    @property
    def _encoder(self) -> Encoder:
        return self._derived.get("encoder", self, lambda dtype: Encoder(self, dtype, self._seam))

    @property
    def _attention(self) -> SparseMemoryAttention:
        return self._derived.get(
            "memory", self, lambda dtype: SparseMemoryAttention(self, dtype, self._seam)
        )
