"""What the clips are a sample of: two losses that are never mixed, and clips of one source that count as one."""

from __future__ import annotations

import numpy as np
import pytest

from probes.errors import InputError, LeftOut
from sparsity.calibration.report import Look, apart
from sparsity.calibration.request import Request
from sparsity.calibration.sample import losses_of, sample_of, sources_of
from sparsity.clips.sources import ClipSource
from tests.sparsity.calibration.conftest import SMALL

NAMES = ("yard-part1", "yard-part2", "b", "c", "d", "e", "f")

LABELLED, BARE = (Look(9, made=False, labelled=labelled) for labelled in (True, False))


def asked(**more):
    return Request(ClipSource(), NAMES, SMALL, **more)


def looks(*bare):
    return {name: BARE if name in bare else LABELLED for name in NAMES}


@pytest.mark.parametrize(
    ("bare", "more", "risk", "level"),
    [
        ((), {}, "loss", 1.0),
        (NAMES, {}, "drift", 5.0),
        (NAMES[:3], {}, "drift", 5.0),  # four with true masks are too few
        ((), {"max_drift": 3.0}, "drift", 3.0),
        ((), {"max_drop": 3.0}, "loss", 3.0),
    ],
)
def test_what_is_lost_follows_what_is_asked_and_what_is_there(bare, more, risk, level):
    request = sample_of(asked(**more), looks(*bare)).request
    assert (request.risk, request.level, request.clips) == (risk, level, NAMES)


def test_clips_without_true_masks_are_counted_apart_and_never_averaged():
    sample = sample_of(asked(max_drop=1.0), looks("f"))
    assert sample.apart == ("f",) and sample.request.clips == NAMES[:-1]
    assert sample_of(asked(max_drift=1.0), looks("f")).apart == ()
    (said,) = apart(sample.request, [2.0, 4.0])
    assert "2 clips without true masks: 3.00 points" in said
    assert "at most 78% of such videos lose more than 4.00 (exact)" in said
    assert apart(sample.request, []) == []
    with pytest.raises(InputError, match="2 of 7 clips have true masks; .* --max-drift"):
        sample_of(asked(max_drop=1.0), looks(*NAMES[:5]))


def test_each_loss_is_read_from_where_it_was_measured():
    runs = {"a": {"s": {"loss": -1.6, "quality": {"agreement": 96.2}}}}
    assert losses_of(runs, ["s"], "loss").tolist() == [[-1.6]]
    assert losses_of(runs, ["s"], "drift") == pytest.approx(np.array([[3.8]]))


@pytest.mark.parametrize("seed", range(6))
def test_clips_of_one_source_count_as_one_and_stay_together(seed):
    sample = sample_of(asked(seed=seed), looks())
    parts = sample.split(1 / 3)
    assert sorted(sum(parts, [])) == sorted(NAMES)
    assert [{"yard-part1", "yard-part2"} <= set(part) for part in parts].count(True) == 1
    losses = np.arange(7.0)[:, None]
    assert sample.pooled(losses, NAMES)[:, 0].tolist() == [0.5, 2, 3, 4, 5, 6]
    assert sample.pooled(losses[::-1], NAMES[::-1])[:, 0].tolist() == [6, 5, 4, 3, 2, 0.5]


def test_sources_can_be_listed(tmp_path):
    listed = tmp_path / "groups.csv"
    listed.write_text("b,street\nc, street\nelsewhere,street\n")
    with pytest.warns(LeftOut, match="names elsewhere, which no clip taken is called"):
        found = sources_of(NAMES, listed)
    assert [*found.values()] == [*NAMES[:2], "street", "street", *NAMES[4:]]
    assert [*sources_of(NAMES).values()] == ["yard", "yard", *NAMES[2:]]
    listed.write_text("b street\n")
    with pytest.raises(InputError, match="has the line 'b street'; expected clip,source"):
        sources_of(NAMES, listed)
    with pytest.raises(InputError, match=r"no\.csv can't be read"):
        sources_of(NAMES, tmp_path / "no.csv")
    listed.write_text("".join(f"{name},one\n" for name in NAMES[2:]))
    with pytest.raises(InputError, match="7 clips of 3 sources given; .* --groups"):
        sample_of(asked(groups=listed), looks())


def test_a_name_in_groups_that_is_no_clip_is_told_and_two_sources_are_refused(tmp_path):
    """A name that is written wrong leaves clips of one source apart, and the promise says too much."""
    listed = tmp_path / "groups.csv"
    listed.write_text(f"{NAMES[2]}.mp4,street\n{NAMES[3]},street\n")
    with pytest.warns(LeftOut, match=rf"names {NAMES[2]}\.mp4, which no clip taken is called"):
        assert sources_of(NAMES, listed)[NAMES[3]] == "street"
    listed.write_text(f"{NAMES[2]},street\n{NAMES[2]},yard\n")
    with pytest.raises(InputError, match=f"puts {NAMES[2]} with street and with yard"):
        sources_of(NAMES, listed)
