"""A ``Sam2VideoModel`` of Hugging Face's transformers under sam2's names, so that it is observed and recorded alike.

It runs by itself, with its own memory bank, session and attention functions; here is only told what it does, in the shapes
in which sam2's predictor would tell it. Transformers is not imported unless such a model is given.

It tracks as sam2 does from points and boxes (transformers 5.24). From a mask it differs: it encodes the prompted frame's
memory from the mask at full size, which sam2 takes down to stride 4 and up again, and takes the object pointer from the best
of three mask tokens, which sam2 takes from the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from threading import local
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probes.errors import InputError

STAND_IN = "_probes_stand_in"
"""Attribute under which a model that is listened to holds its stand-in."""


def is_transformers_model(model: Any) -> bool:
    """Whether a model is a ``Sam2VideoModel`` of transformers."""
    return any(
        base.__name__ == "Sam2VideoModel" and base.__module__.startswith("transformers.")
        for base in type(model).__mro__
    )


def stand_in(model: Any) -> Any:
    """Return what a model is listened to through: itself, or a `TransformersPredictor` of a transformers model.

    Raises
    ------
    InputError
        The transformers model chooses among its conditioning frames, which sam2 does otherwise.
    """
    if not is_transformers_model(model):
        return model
    return model.__dict__.get(STAND_IN) or TransformersPredictor(model)


class TransformersPredictor:
    """What sam2's predictor would be of a transformers model: attributes, methods and state, as probes use them.

    Parameters
    ----------
    model
        A ``Sam2VideoModel``. It is not changed; while it is listened to, its own methods pass by here.
    """

    probes_name = "transformers"
    add_all_frames_to_correct_as_cond = False

    # as transformers' model does by itself, see sam2's attributes of these names
    max_cond_frames_in_attn = -1
    memory_temporal_stride_for_eval = 1
    use_obj_ptrs_in_encoder = True
    only_obj_ptrs_in_the_past_for_eval = True

    def __init__(self, model: Any) -> None:
        config = model.config
        if config.max_cond_frame_num != self.max_cond_frames_in_attn:
            raise InputError(
                f"a Sam2VideoModel with max_cond_frame_num {config.max_cond_frame_num} was given, which reads other object "
                "pointers than sam2; expected -1; set that in its config, or load its weights with build_predictor"
            )
        self.model, backbone = model, model.vision_encoder.backbone
        self.image_size: int = model.image_size
        self.sam_image_embedding_size: int = model.backbone_feature_sizes[-1][0]
        self.num_maskmem, self.mem_dim = model.num_maskmem, model.mem_dim
        self.hidden_dim: int = model.hidden_dim
        self.max_obj_ptrs_in_encoder = config.max_object_pointers_in_encoder
        signed = config.enable_temporal_pos_encoding_for_object_pointers
        self.use_signed_tpos_enc_to_obj_ptrs = signed
        trunk = SimpleNamespace(
            blocks=[
                SimpleNamespace(q_stride=b.query_stride, window_size=b.window_size, attn=b.attn)
                for b in backbone.blocks
            ],
            stage_ends=backbone.stage_ends,
            window_spec=backbone.config.window_size_per_stage,
        )
        self.image_encoder = SimpleNamespace(trunk=trunk)
        self.memory_attention = model.memory_attention
        self.sam_mask_decoder = SimpleNamespace(
            transformer=model.mask_decoder.transformer,
            num_mask_tokens=model.mask_decoder.num_mask_tokens,
            pred_obj_scores=True,
        )
        self._implementations: list[tuple[Any, str | None]] = []
        self._in_place: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def training(self) -> bool:
        return bool(self.model.training)

    def named_modules(self) -> Iterator[tuple[str, Any]]:
        """Modules of the model by name."""
        return iter(self.model.named_modules())

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, as transformers names them."""
        return dict(self.model.state_dict())

    # ------------------------------------------------------------------ what passes by while it is listened to

    def put_in_place(self) -> None:
        """Have the model's own methods pass by those here."""
        model = self.model
        track, encode = model._run_single_frame_inference, model._prepare_vision_features
        prepare, decode = model._prepare_memory_conditioned_features, model._single_frame_forward
        remember = model._encode_new_memory

        def tracked(inference_session: Any, frame_idx: int, obj_idx: int, **given: Any) -> Any:
            state = SessionState(inference_session, self)
            known = state["output_dict_per_obj"][obj_idx]
            return self._run_single_frame_inference(
                state, known, frame_idx, given["reverse"],
                lambda: track(inference_session=inference_session, frame_idx=frame_idx, obj_idx=obj_idx, **given),
            )[1]  # fmt: skip

        def encoded(inference_session: Any, frame_idx: int, batch_size: int) -> Any:
            state = SessionState(inference_session, self, encode)
            return self._get_image_feature(state, frame_idx, batch_size)

        def prepared(**given: Any) -> Any:
            state = SessionState(given["inference_session"], self)
            count = None if given.get("streaming") else given["num_total_frames"]
            return self._prepare_memory_conditioned_features(
                given["frame_idx"], given["is_initial_conditioning_frame"],
                state["output_dict_per_obj"][given["obj_idx"]], count or sys.maxsize,
                given.get("track_in_reverse_time", False), lambda: prepare(**given),
            )  # fmt: skip

        def decoded(**given: Any) -> Any:
            return self._forward_sam_heads(lambda: decode(**given)).theirs

        def remembered(**given: Any) -> Any:
            return self._encode_new_memory(lambda: remember(**given))

        self._in_place = {
            STAND_IN: self,
            "_run_single_frame_inference": tracked,
            "_prepare_vision_features": encoded,
            "_prepare_memory_conditioned_features": prepared,
            "_single_frame_forward": decoded,
            "_encode_new_memory": remembered,
        }
        model.__dict__.update(self._in_place)

    def take_away(self) -> None:
        """Give the model its own methods back."""
        for name in self._in_place:
            del self.model.__dict__[name]

    def _run_single_frame_inference(
        self,
        inference_state: Any,
        output_dict: Any,
        frame_idx: int,
        reverse: bool,
        own: Callable[[], dict[str, Any]],
    ) -> tuple[Mapping[str, Any], dict[str, Any]]:
        made = own()
        return _Result(made, self.sam_image_embedding_size), made

    def _get_image_feature(self, inference_state: Any, frame_idx: int, batch_size: int) -> Any:
        return inference_state.encode(inference_state["session"], frame_idx, batch_size)

    def _prepare_memory_conditioned_features(
        self,
        frame_idx: int,
        is_init_cond_frame: bool,
        output_dict: Any,
        num_frames: int,
        track_in_reverse: bool,
        own: Callable[[], Tensor],
    ) -> Tensor:
        return own()

    def _forward_sam_heads(self, own: Callable[[], Any]) -> _Heads:
        several: list[Any] = []
        handle = self.model.mask_decoder.register_forward_hook(
            lambda module, given, made: several.append(made)
        )
        try:
            return _Heads(own(), several[0])
        finally:
            handle.remove()

    def _encode_new_memory(self, own: Callable[[], Any]) -> Any:
        return own()

    # ------------------------------------------------------------------ attention

    def see_attention(self) -> None:
        """Have every attention call pass by `AttentionSeen`, whichever function computes it."""
        table = import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
        # the model's own is first: it sets those inside it
        own = (
            self.model.config,
            self.model.vision_encoder.backbone.config,
            self.model.mask_decoder.transformer.config,
        )
        configs = {id(config): config for config in own}
        self._implementations = [(c, c._attn_implementation) for c in configs.values()]
        for config, name in self._implementations:
            table.register(f"seen_{name}", _passing_by(table, name))
            config._attn_implementation = f"seen_{name}"

    def leave_attention(self) -> None:
        """Give the model its own attention functions back."""
        for config, name in self._implementations:
            config._attn_implementation = name
        self._implementations = []

    # ------------------------------------------------------------------ to be tracked with, as by sam2's predictor

    def begin(self, images: Any, num_frames: int, size: tuple[int, int]) -> Any:
        """Begin a video and return its `SessionState`; frames are made when they are asked for, as sam2 makes them."""
        modeling = import_module(
            next(b.__module__ for b in type(self.model).__mro__ if b.__name__ == "Sam2VideoModel")
        )
        session = modeling.Sam2VideoInferenceSession(
            video_height=size[0], video_width=size[1], inference_device=self.device,
            inference_state_device=self.device, video_storage_device=self.device, dtype=self.model.dtype,
        )  # fmt: skip
        session.processed_frames = _Frames(images, num_frames, self.model.dtype)
        return SessionState(session, self)

    def add_new_points_or_box(
        self,
        state: SessionState,
        frame_idx: int,
        obj_id: int,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        normalize_coords: bool = True,
    ) -> None:
        """Prompt an object, as sam2's method of this name; the frame is tracked when tracking comes to it."""
        given = [[] if one is None else one for one in (box, points, labels)]
        corners, places = (torch.as_tensor(p, dtype=torch.float32) for p in given[:2])
        kinds = torch.as_tensor(given[2], dtype=torch.int32).reshape(-1)
        places = torch.cat([corners.reshape(-1, 2), places.reshape(-1, 2)])
        kinds = torch.cat([torch.tensor([2, 3][: len(corners)], dtype=torch.int32), kinds])
        if normalize_coords:
            places = places / torch.tensor([state["video_width"], state["video_height"]])
        session = state["session"]
        index = session.obj_id_to_idx(obj_id)
        places = (places * self.image_size)[None, None].to(self.model.dtype)
        session.remove_mask_inputs(index, frame_idx)
        said = {"point_coords": places, "point_labels": kinds[None, None]}
        session.add_point_inputs(index, frame_idx, said)
        _note_new(session, obj_id)

    def add_new_mask(self, state: SessionState, frame_idx: int, obj_id: int, mask: Any) -> None:
        """Prompt an object with its mask ``[H, W]``, as sam2's method of this name."""
        given = torch.as_tensor(mask, dtype=torch.float32)[None, None]
        side = (self.image_size, self.image_size)
        if given.shape[-2:] != side:
            given = F.interpolate(given, side, mode="bilinear", align_corners=False, antialias=True)
            given = (given >= 0.5).float()
        session = state["session"]
        index = session.obj_id_to_idx(obj_id)
        session.remove_point_inputs(index, frame_idx)
        session.add_mask_inputs(index, frame_idx, given)
        _note_new(session, obj_id)

    def remove_object(self, state: SessionState, obj_id: int, need_output: bool = False) -> None:
        """Take an object out of a session."""
        session = state["session"]
        gone = session._obj_id_to_idx.pop(obj_id)
        left = list(session._obj_id_to_idx)
        for name in (
            "point_inputs_per_obj", "mask_inputs_per_obj", "output_dict_per_obj", "frames_tracked_per_obj",
        ):  # fmt: skip
            table = getattr(session, name)
            kept = [table[index] for index in sorted(table) if index != gone]
            setattr(session, name, dict(enumerate(kept)))
        for table, pairs in (
            (session._obj_id_to_idx, zip(left, range(len(left)), strict=True)),
            (session._obj_idx_to_id, zip(range(len(left)), left, strict=True)),
        ):
            table.clear()
            table.update(pairs)
        session.obj_ids = left
        session.obj_with_new_inputs = [i for i in session.obj_with_new_inputs if i != obj_id]

    def propagate_in_video(
        self,
        state: SessionState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """Track by the model's own iterator.

        Yields
        ------
        tuple
            Frame, ids of objects, and their logits ``[objects, 1, H, W]``.
        """
        size = (state["video_height"], state["video_width"])
        for made in self.model.propagate_in_video_iterator(
            state["session"], start_frame_idx, max_frame_num_to_track, reverse
        ):
            masks = made.pred_masks.float()
            logits = F.interpolate(masks, size, mode="bilinear", align_corners=False)
            yield made.frame_idx, made.object_ids, logits


def _note_new(session: Any, obj_id: int) -> None:
    if obj_id not in session.obj_with_new_inputs:
        session.obj_with_new_inputs.append(obj_id)


class _Heads(tuple[Any, ...]):
    """What the mask decoder's heads gave, in sam2's order, and what transformers made of it."""

    theirs: Any

    def __new__(cls, theirs: Any, several: Any) -> _Heads:
        masks, ious = several[0][:, 0], several[1][:, 0]
        gone = (theirs.object_score_logits[:, 0] <= 0)[..., None, None]
        masks = torch.where(gone, -1024.0, masks)
        made = super().__new__(
            cls,
            (
                masks, None, ious, theirs.pred_masks, theirs.high_res_masks, theirs.object_pointer[:, 0],
                theirs.object_score_logits[:, 0],
            ),
        )  # fmt: skip
        made.theirs = theirs
        return made


class SessionState(Mapping[str, Any]):
    """A session of transformers under the names of sam2's state; what it says is always the session's newest."""

    def __init__(self, session: Any, predictor: TransformersPredictor, encode: Any = None) -> None:
        self._session, self._grid, self.encode = session, predictor.sam_image_embedding_size, encode
        frames = session.processed_frames
        self._values = {
            "session": lambda: session,
            "images": lambda: frames,
            "num_frames": lambda: len(frames),
            "video_height": lambda: session.video_height or predictor.image_size,
            "video_width": lambda: session.video_width or predictor.image_size,
            "obj_ids": lambda: session.obj_ids,
            "obj_idx_to_id": lambda: session._obj_idx_to_id,
            "point_inputs_per_obj": lambda: session.point_inputs_per_obj,
            "mask_inputs_per_obj": lambda: session.mask_inputs_per_obj,
            "output_dict_per_obj": self._results,
            "temp_output_dict_per_obj": self._prompted,
        }
        self._views: dict[int, tuple[Any, dict[str, Mapping[int, Any]]]] = {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _results(self) -> dict[int, dict[str, Mapping[int, Any]]]:
        """Results by object's index, kind and frame; the same dicts as long as the session's are."""
        for index, own in self._session.output_dict_per_obj.items():
            if index not in self._views or self._views[index][0] is not own:
                view = {kind: _Results(frames, self._grid) for kind, frames in own.items()}
                self._views[index] = own, dict(view)
        return {i: self._views[i][1] for i in self._session.output_dict_per_obj}

    def _prompted(self) -> dict[int, dict[str, dict[int, None]]]:
        """Frames on which each object is prompted, by its index."""
        points, masks = self._session.point_inputs_per_obj, self._session.mask_inputs_per_obj
        return {
            index: {"cond_frame_outputs": dict.fromkeys(sorted({*points[index], *masks[index]}))}
            for index in self._session._obj_idx_to_id
        }


class _Results(Mapping[int, Mapping[str, Any]]):
    """Results by frame."""

    def __init__(self, own: dict[int, dict[str, Any]], grid: int) -> None:
        self._own, self._grid = own, grid

    def __getitem__(self, frame: int) -> Mapping[str, Any]:
        return _Result(self._own[frame], self._grid)

    def __iter__(self) -> Iterator[int]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


class _Result(Mapping[str, Any]):
    """One frame's result under sam2's names, ``maskmem_features`` ``[1, C, n, n]`` and ``obj_ptr`` ``[1, C]``."""

    NAMES = {
        "pred_masks": "pred_masks",
        "object_score_logits": "object_score_logits",
        "obj_ptr": "object_pointer",
        "maskmem_features": "maskmem_features",
    }

    def __init__(self, own: dict[str, Any], grid: int) -> None:
        self._own, self._grid = own, grid

    def __getitem__(self, name: str) -> Any:
        value = self._own[self.NAMES[name]]
        if name == "maskmem_features":
            return value.permute(1, 2, 0).unflatten(2, (self._grid, self._grid))
        return value.flatten(1) if name in ("object_score_logits", "obj_ptr") else value

    def __iter__(self) -> Iterator[str]:
        return (name for name, theirs in self.NAMES.items() if theirs in self._own)

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Frames:
    """A video's frames as a session asks for them."""

    def __init__(self, images: Any, count: int, dtype: torch.dtype) -> None:
        self._images, self._count, self._dtype = images, count, dtype

    def __getitem__(self, frame: int) -> Tensor:
        made: Tensor = self._images[frame]
        return made.to(self._dtype)

    def __len__(self) -> int:
        return self._count


# ---------------------------------------------------------------------- the attention-function table

_now = local()


class AttentionSeen:
    """Notes the attention calls in its context, in this thread.

    Parameters
    ----------
    site
        Whose calls.
    seams
        `probes.seam.Seam` of each who is to be told.

    Attributes
    ----------
    calls
        As each of the seams is to be told of it.
    """

    def __init__(self, site: str, seams: list[Any]) -> None:
        self.site, self.seams = site, seams
        self.calls: list[list[tuple[Any, Any]]] = []

    def __enter__(self) -> AttentionSeen:
        self._before, _now.seen = getattr(_now, "seen", None), self
        return self

    def __exit__(self, *_: object) -> None:
        _now.seen = self._before


def _passing_by(table: Any, name: str | None) -> Callable[..., Any]:
    """Make an attention function that notes what it is given and computes as the one of a name does."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **given: Any
    ) -> Any:
        if (seen := getattr(_now, "seen", None)) is not None:
            seen.calls.append([(s, s.call(seen.site, query, key, value)) for s in seen.seams])
        eager = import_module(type(module).__module__).eager_attention_forward
        return table.get_interface(name or "eager", eager)(
            module, query, key, value, *args, **given
        )

    return attention
