"""Several videos at once: the masks of one after the other, whole frames of several in one batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes.errors import InputError
from sparsity import accelerate
from sparsity.profile import BUILTIN
from tests.sparsity.acceleration.conftest import make_frames, make_mask, part_of_mask, run
from tests.sparsity.acceleration.test_camera import Encodings


def begun(fast: Any) -> list[dict[str, Any]]:
    """Three videos: other sizes, lengths and numbers of objects, one a stream, one prompted in its middle."""
    flipped = np.ascontiguousarray(make_frames(6)[:, ::-1, :100])
    states = [
        fast.init_state(make_frames(5)),
        fast.init_state(flipped),
        fast.init_state(iter(flipped)),
    ]
    fast.add_new_mask(states[0], 0, 1, make_mask())
    fast.add_new_mask(states[1], 2, "late", np.ascontiguousarray(make_mask(2)[::-1, :100]))
    fast.add_new_mask(states[2], 0, 1, np.ascontiguousarray(part_of_mask(0)[::-1, :100]))
    fast.add_new_mask(states[2], 0, 2, np.ascontiguousarray(part_of_mask(1)[::-1, :100]))
    return states  # fmt: skip


@pytest.mark.parametrize("profile", ["dense", "exact", "recommended"])
def test_masks_are_those_of_one_after_the_other(small_demo: Any, profile: str) -> None:
    fast = accelerate(small_demo, profile)
    alone = [run(fast, state) for state in begun(fast)]
    states = begun(fast)
    with Encodings() as listened:
        found: list[dict[int, torch.Tensor]] = [{}, {}, {}]
        order = []
        for n, frame, ids, masks in fast.track_videos(states):
            assert ids == states[n]["obj_ids"]
            found[n][frame] = masks
            order.append(n)
    assert [list(f) for f in found] == [list(range(5)), list(range(2, 6)), list(range(6))]
    assert order[:6] == [0, 1, 2, 0, 1, 2]
    for mine, expected in zip(found, alone, strict=True):
        for t in expected:
            torch.testing.assert_close(mine[t], expected[t], rtol=0, atol=1e-3)
    assert not torch.allclose(found[0][4], found[2][4][:1, :, :, :1], atol=1e-3)
    if profile != "recommended":
        assert listened.pictures == [3, 3, 3, 2] + [1]
    reports = [[f.encoded_together for f in fast.report(state).frames] for state in states]
    assert any(3 in said for said in reports)
    run(fast, states[0])
    assert {f.encoded_together for f in fast.report(states[0]).frames[-5:]} == {1}


def test_int8_knows_one_video_at_a_time(tiny_demo: Any) -> None:
    """Activations of a product share a scale: in one batch with another video its pictures would change the masks."""
    fast = accelerate(tiny_demo, BUILTIN["exact"].model_copy(update={"quantize": "int8"}))
    clips = make_frames(2), 255 - make_frames(2)

    def states() -> list[dict[str, Any]]:
        found = [fast.init_state(clip) for clip in clips]
        for state in found:
            fast.add_new_mask(state, 0, 1, make_mask())
        return found

    alone = [run(fast, state) for state in states()]
    for n, frame, _, masks in fast.track_videos(states()):
        assert torch.equal(masks, alone[n][frame]), (n, frame)
    assert not torch.equal(alone[0][1], alone[1][1])


def test_what_cannot_be_tracked_is_refused_before_any_work(small_demo: Any) -> None:
    fast = accelerate(small_demo, "exact")
    states = begun(fast)
    empty = fast.init_state(make_frames(2))
    with pytest.raises(InputError, match="4 states were given and one of them twice"):
        fast.track_videos([*states, states[0]])
    with pytest.raises(InputError, match="one state given; expected a list of them"):
        fast.track_videos(states[0])
    with pytest.raises(InputError, match="video 4 of 4 has no object"):
        fast.track_videos([*states, empty])
    assert all(not o["non_cond_frame_outputs"] for s in states for o in s["output_dict_per_obj"].values())  # fmt: skip
    assert list(fast.track_videos([])) == []
