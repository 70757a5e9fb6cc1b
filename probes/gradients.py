"""How the mask of one frame comes of its picture, memory tokens and object pointers: attribution by gradients.

`DifferentiableFrame` is the frame as a function of these; `integrated_gradients` and `attention_times_gradient` ask it.
`probes.attribution` takes groups away instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from captum.attr import IntegratedGradients
from torch import Tensor
from torch.utils._pytree import tree_map

from probes.errors import InputError
from probes.layout import MemoryLayout, memory_layout, stored_results
from probes.maps import key_tokens, on_grid, site_of
from probes.mass import row_blocks
from probes.observing import edit, plain_tensors
from probes.seam import AttentionCall
from probes.tracking import tracked_object

Target = Callable[[Tensor], Tensor]
"""From mask logits ``[h, w]`` to one number."""

Input = Literal["picture", "memory", "pointers"]


def mask_target(logits: Tensor) -> Target:
    """Mean logit inside the mask that some logits ``[h, w]`` give, or the largest where it is empty."""
    inside = logits.detach() > 0
    if not bool(inside.any()):
        inside = logits.detach() == logits.max()
    return lambda other: other[inside].mean()


class DifferentiableFrame:
    """One object's mask logits on a frame as a function of the picture, its memory and its pointers, with gradients.

    sam2's own modules run outside of inference mode on copies of what is stored; the state stays as it is. Attention can be
    observed and edited meanwhile, with gradients. Two steps that jump are held: of the decoder's candidate masks it is always
    the one that was chosen for the inputs as they were, and its logits stay where sam2 would set them to -1024 because
    the object's score is negative.

    Parameters
    ----------
    predictor
        The stock predictor.
    state
        Tracked up to the frame before (going back: after), at least.
    frame, object_id
        Where to look.

    Attributes
    ----------
    layout
        The memory bank that is read.
    inputs
        What was read: ``picture`` float32 ``[3, S, S]``, normalised; ``memory`` float32 ``[frames, C, g, g]``;
        ``pointers`` float32 ``[pointers, C]``.
    logits
        For these inputs, without gradients, ``[h, w]``.

    Raises
    ------
    InputError
        The predictor is accelerated, or the object is unknown or prompted on the frame.
    """

    def __init__(self, predictor: Any, state: dict[str, Any], frame: int, object_id: int) -> None:
        known, self._reverse = tracked_object(predictor, state, frame, object_id)
        self._predictor, self._state, self._known, self._frame = predictor, state, known, frame
        self.layout = memory_layout(predictor, frame, known, state["num_frames"], self._reverse)
        self._stored, device = stored_results(known, self.layout), predictor.device
        frames = self._stored[: len(self.layout.frames)]
        pointers = self._stored[len(frames) :]
        with torch.inference_mode(False), torch.no_grad():
            plain_tensors(predictor)
            memory = [out["maskmem_features"].to(device).float().clone() for out in frames]
            pointing = [out["obj_ptr"].to(device).float().clone() for out in pointers]
            empty = torch.zeros(0, predictor.hidden_dim, device=device)
            self.inputs: dict[Input, Tensor] = {
                "picture": state["images"][frame].to(device).float().clone(),
                "memory": torch.cat(memory),
                "pointers": torch.cat(pointing) if pointing else empty,
            }
            self._others = [
                {**out, "maskmem_pos_enc": [enc.clone() for enc in out["maskmem_pos_enc"]]}
                for out in self._stored
            ]
        self._features: dict[int, Any] | None = None
        self._candidate: int | None = None
        self.logits = self().detach()

    def __call__(
        self,
        picture: Tensor | None = None,
        memory: Tensor | None = None,
        pointers: Tensor | None = None,
    ) -> Tensor:
        """Mask logits ``[h, w]`` for other inputs; one that is None is as it was."""
        memory = self.inputs["memory"] if memory is None else memory
        pointers = self.inputs["pointers"] if pointers is None else pointers
        others = {id(out): dict(own) for out, own in zip(self._stored, self._others, strict=True)}
        read = [others[id(out)] for out in self._stored]
        frames = len(self.layout.frames)
        for index, own in enumerate(read):
            if index < frames:
                own["maskmem_features"] = memory[index : index + 1]
            else:
                own["obj_ptr"] = pointers[index - frames : index - frames + 1]
        results = {
            part: {t: others.get(id(out), out) for t, out in of.items()}
            for part, of in self._known.items()
        }
        state = {**self._state, "output_dict_per_obj": {0: results}, "obj_idx_to_id": {0: None}}
        state |= {"images": {self._frame: self.inputs["picture"]}, "cached_features": {}}
        for index, of in self._state["output_dict_per_obj"].items():
            if of is self._known:
                state["obj_idx_to_id"] = {0: self._state["obj_idx_to_id"][index]}
        with torch.inference_mode(False), torch.enable_grad():
            if picture is not None:
                state["images"] = {self._frame: picture}
            elif self._features is None:
                self._predictor._get_image_feature(state, self._frame, 1)
                made: dict[int, Any] = state["cached_features"]
                self._features = tree_map(lambda t: t.detach(), made)
            state["cached_features"] = dict(self._features or {}) if picture is None else {}
            decoded: list[tuple[Tensor, Tensor]] = []
            decoder = self._predictor.sam_mask_decoder
            handle = decoder.register_forward_hook(lambda m, given, out: decoded.append(out[:2]))
            try:
                self._predictor._run_single_frame_inference(
                    inference_state=state, output_dict=results, frame_idx=self._frame, batch_size=1,
                    is_init_cond_frame=False, point_inputs=None, mask_inputs=None, reverse=self._reverse,
                    run_mem_encoder=False,
                )  # fmt: skip
            finally:
                handle.remove()
        ((masks, ious),) = decoded
        if self._candidate is None:
            self._candidate = int(ious[0].argmax())
        return masks[0, self._candidate]


@dataclass(frozen=True)
class Attribution:
    """What each input token counts for, in the unit of the target (logits); None for inputs that were not asked about.

    Attributes
    ----------
    layout
        Says which memory frame and pointer is which.
    picture
        float32 ``[S, S]``, pixels of the model's input.
    memory
        float32 ``[frames, g, g]``, memory tokens.
    pointers
        float32 ``[pointers]``.
    value, baseline
        The target for the inputs as they are, and for zeros in their place.
    """

    layout: MemoryLayout
    picture: Tensor | None
    memory: Tensor | None
    pointers: Tensor | None
    value: float
    baseline: float

    @property
    def gap(self) -> float:
        """By how much the sum of all misses ``value - baseline``: 0 but for the steps of the integral (completeness)."""
        found = [one for one in (self.picture, self.memory, self.pointers) if one is not None]
        return float(sum(one.double().sum() for one in found)) - (self.value - self.baseline)


def integrated_gradients(
    predictor: Any,
    state: dict[str, Any],
    frame: int,
    object_id: int,
    of: Sequence[Input] = ("memory", "pointers"),
    steps: int = 32,
    target: Target | None = None,
) -> Attribution:
    """Integrated gradients of an object's mask on a frame (captum; Sundararajan et al. 2017, equation 1).

    From zeros to the inputs as they are, along a straight line, all inputs that are asked about together; the others stay.
    Zero is the mean colour of a picture, and no content of a memory token, whose position stays.

    Parameters
    ----------
    predictor, state, frame, object_id
        As for `DifferentiableFrame`.
    of
        Inputs to ask about: ``"picture"`` (through the encoder), ``"memory"``, ``"pointers"``.
    steps
        Points of the integral, one run with gradients each; `Attribution.gap` tells whether they are enough.
    target
        From logits ``[h, w]`` to a number; None for `mask_target`.

    Raises
    ------
    InputError
        An input is none of these or given twice, there are no steps, or as `DifferentiableFrame`.
    """
    names: list[Input] = list(of)
    if not names or len(set(names)) < len(names) or not set(names) <= set(get_args(Input)):
        raise InputError(
            f"inputs {names} were asked about; expected some of {', '.join(get_args(Input))}, each once; choose among them"
        )
    if steps < 1:
        raise InputError(f"{steps} steps were given; expected 1 at least; 32 are a start")
    run = DifferentiableFrame(predictor, state, frame, object_id)
    if "pointers" in names and not len(run.inputs["pointers"]):
        raise InputError(
            f"pointers of frame {frame} were asked about, which has none; expected a model that uses them; ask about others"
        )
    aim = target or mask_target(run.logits)

    def value(*inputs: Tensor) -> Tensor:
        found = [
            aim(run(**dict(zip(names, one, strict=True)))) for one in zip(*inputs, strict=True)
        ]
        return torch.stack(found)

    with torch.inference_mode(False), torch.enable_grad():
        given = tuple(run.inputs[name][None] for name in names)
        made = IntegratedGradients(value).attribute(given, n_steps=steps, internal_batch_size=1)
        ends = [value(*inputs).item() for inputs in (given, tuple(map(torch.zeros_like, given)))]
    sums: dict[Input, Tensor] = {}
    for name, one in zip(names, made, strict=True):
        channels = 0 if name == "picture" else 1
        sums[name] = one[0].detach().sum(channels).float()
    return Attribution(
        run.layout, sums.get("picture"), sums.get("memory"), sums.get("pointers"), *ends
    )


def attention_times_gradient(
    predictor: Any,
    state: dict[str, Any],
    frame: int,
    object_id: int,
    sites: str | Sequence[str] = "memory.*.cross",
    target: Target | None = None,
) -> dict[str, Tensor]:
    """Attention weights times their gradients, positive part, summed over queries (Chefer et al. 2021, equation 5).

    A key counts where it is attended to and more attention would raise the target. One run with gradients; the
    gradient of the weights is that of the heads' output times the values, so no matrix is held whole.

    Parameters
    ----------
    predictor, state, frame, object_id
        As for `DifferentiableFrame`.
    sites
        Patterns of sites, as `observe` takes them.
    target
        From logits ``[h, w]`` to a number; None for `mask_target`.

    Returns
    -------
    dict
        By site float32 ``[h, keys]``. Encoder keys are tokens of the site's grid (padding left out), memory keys those of
        ``DifferentiableFrame.layout``: frames, then pointers.

    Raises
    ------
    InputError
        A pattern matches nothing, or as `DifferentiableFrame`.
    """
    run = DifferentiableFrame(predictor, state, frame, object_id)
    aim = target or mask_target(run.logits)
    calls: list[tuple[AttentionCall, Tensor]] = []

    def keep(call: AttentionCall) -> AttentionCall:
        output = call.attended()
        if not output.requires_grad:
            output = output.requires_grad_()
        calls.append((call, output))
        return call.change(output=output)

    with torch.inference_mode(False), torch.enable_grad():
        with edit(predictor, keep, sites):
            value = aim(run())
        outputs = [output for _, output in calls]
        gradients = torch.autograd.grad(value, outputs)
    found = {}
    with torch.no_grad():
        for (call, _), gradient in zip(calls, gradients, strict=True):
            total = call.q.new_zeros(*call.q.shape[:2], call.k.shape[2], dtype=torch.float32)
            for rows, p in row_blocks(call.q, call.k):
                slope = gradient[:, :, rows].float() @ call.v.float().mT
                total += (p * slope).clamp(min=0).sum(2)
            on_keys = total
            if site_of(call).part == "encoder":
                on_keys = on_grid(total, key_tokens(call), site_of(call).grid)
            found[call.site] = on_keys[0]
    return found
