"""Whether a profile can be had by a model: its fingerprint, and the shapes its techniques rely on."""

from __future__ import annotations

from sam2.modeling.sam2_base import SAM2Base

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.encoder import why_not_exact
from sparsity.acceleration.memory import why_not_sparse
from sparsity.profile import Profile
from sparsity.window_cues import CUES


def check_fit(profile: Profile, model: SAM2Base, force: bool) -> bool:
    """Check that a model can have a profile.

    Returns
    -------
    bool
        Whether the profile was made for another model, and `force` let it pass.

    Raises
    ------
    InputError
        The profile was made for another model (and `force` is not set), or asks for what this model
        cannot have.
    """
    named = f"profile {profile.name!r}"
    if profile.technique("encoder") and (reason := why_not_exact(model)):
        raise InputError(f"{named} asks for the technique 'encoder', but {reason}; switch it off")
    memory = profile.memory
    sparse = memory is not None or profile.technique("memory_attention")
    if sparse and (reason := why_not_sparse(model)):
        raise InputError(f"{named} changes memory attention, but {reason}; set memory to null")
    layers = len(model.memory_attention.layers)
    if memory is not None and isinstance(memory.keep, tuple) and len(memory.keep) != layers:
        raise InputError(
            f"{named} has {len(memory.keep)} values of memory.keep, the model has {layers} "
            f"memory-attention layers; give one value or {layers}"
        )
    if profile.router is not None and (unknown := set(profile.router.cues) - set(CUES)):
        raise InputError(
            f"{named} has a router that reads {min(unknown)!r}; expected cues among {', '.join(CUES[:3])}, …; "
            "calibrate anew"
        )
    if profile.model is None or profile.model == (own := fingerprint(model)):
        return False
    if not force:
        raise InputError(
            f"{named} was calibrated for the model {profile.model[:19]}…, this one is {own[:19]}…; "
            "calibrate it for this model, or force it"
        )
    return True
