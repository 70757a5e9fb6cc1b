"""The router is judged on clips that it has not seen, and what is told of it adds up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probes.errors import InputError
from sparsity import accelerate
from sparsity.calibration.drift import Drift
from sparsity.calibration.replay import replay_windows
from sparsity.calibration.router import (
    PAPER,
    examples,
    fit_router,
    judge,
    learnable,
    names_of_cues,
)
from sparsity.calibration.search import grid
from sparsity.calibration.thresholds import mask_only
from sparsity.profile import Guard, Profile, Windows
from sparsity.window_cues import CUES, MASK_CUES

COLUMNS = ("candidates", "best", "saliency", "score", "tracked", "thumbnails")


@pytest.fixture(scope="module")
def verdict(traces):
    return judge(traces)


def test_the_rule_and_the_router_recall_as_much(traces, verdict):
    assert verdict.paper.shape == verdict.router.shape == (len(traces), 2)
    assert verdict.router[:, 1].mean() >= verdict.paper[:, 1].mean()
    assert verdict.saved == 1 - verdict.router[:, 0].mean() / verdict.paper[:, 0].mean()
    replayed = replay_windows(traces[0], PAPER, Guard(kept_share=1.0))
    assert verdict.paper[0] == pytest.approx((replayed.kept[1:].mean(), replayed.recall[1:].mean()))


def test_nobody_keeps_less_than_who_knows_the_next_frame(verdict):
    assert verdict.oracle[:, 0].mean() <= min(verdict.router[:, 0].mean(), verdict.needed)
    assert verdict.oracle[:, 1].mean() >= verdict.paper[:, 1].mean()
    assert 0 < verdict.needed < verdict.paper[:, 0].mean()


def test_a_higher_threshold_keeps_and_recalls_less(verdict):
    kept, recall = verdict.curve.T
    assert np.all(np.diff(kept[:-5]) <= 1e-12) and np.all(np.diff(recall[:-5]) <= 1e-12)
    assert kept[0] > kept[-5]
    precision, found = verdict.precision.T
    assert np.all(np.diff(found) <= 0) and precision[40] > precision[0]
    assert np.all((verdict.reliability >= 0) & (verdict.reliability <= 1))


def test_without_logits_the_router_reads_masks_alone(traces):
    assert names_of_cues(traces) == CUES
    blind = [replace(trace, token_logits=None) for trace in traces]
    router = fit_router(blind, 0.95)
    assert router.cues == MASK_CUES and fit_router(traces, 0.95).cues == CUES
    replayed = replay_windows(blind[0], mask_only(0.0, "best"), Guard(kept_share=1.0), router)
    assert replayed.kept.min() < 1


def test_a_replay_with_the_router_keeps_what_was_promised(traces):
    router = fit_router(traces, 0.97)
    rules = mask_only(0.0, "best"), Guard(kept_share=1.0)
    replays = [replay_windows(trace, *rules, router) for trace in traces]
    assert np.mean([r.recall[1:].mean() for r in replays]) >= 0.97
    assert len(examples(traces[0]).cues) == len(replays[0].kept) - 1


def test_a_router_is_learnt_only_where_windows_differ(traces):
    close = replace(traces[0], best=torch.ones_like(traces[0].best))
    gone = replace(traces[0], best=torch.zeros_like(traces[0].best))
    short = replace(
        traces[0],
        frames=traces[0].frames[:2],
        **{k: getattr(traces[0], k)[:2] for k in (*COLUMNS, "token_logits")},
    )
    assert learnable(traces[:2]) and learnable([*traces[:2], close, gone])
    assert not any(learnable([traces[1], other]) for other in (close, gone, short))
    assert not learnable(traces[:1])
    drift = Drift(())
    assert any(setting.router for setting in grid(traces, drift))
    assert not any(setting.router for setting in grid([traces[1], close], drift))


def test_a_router_of_unknown_cues_is_refused(dividing_predictor, traces):
    router = fit_router(traces[:1], 0.9)
    other = router.model_copy(update={"cues": ("moon", *router.cues[1:])})
    good, bad = (Profile(name="p", windows=Windows(), router=r) for r in (router, other))
    accelerate(dividing_predictor, good)
    with pytest.raises(InputError, match="reads 'moon'; expected cues among mask_share"):
        accelerate(dividing_predictor, bad)
