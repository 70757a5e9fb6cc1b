"""The page of ``make demo``: what was observed, calibrated and accelerated, in figures and one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from figures import calibration
from figures.export import save_page
from figures.filmstrip import draw_memory_filmstrip
from figures.kept import draw_recall
from figures.player import RoutedFrame, draw_window_player
from figures.readings import recall_curves, recollections, row_sampling
from probes.records import Recording

KEEP = 0.05
"""Share of memory tokens whose recall is drawn."""

LAST = 3
"""Frames at the end of the clip whose recollections are drawn."""


@dataclass(frozen=True)
class Shown:
    """A clip that was tracked.

    Attributes
    ----------
    rows
        A run each, the one against which the others stand first.
    routed
        The run of the player, frame by frame.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    routed: Sequence[RoutedFrame]


@dataclass(frozen=True)
class Story:
    """What happened to the clips that are shown.

    Attributes
    ----------
    conditions
        Clip, size, device and threads.
    shown
        Name of the run in the players.
    clip
        The one that was probed.
    photographed
        A real picture under a moving camera.
    frames : uint8 [H, W, 3]
        Of the clip, by index.
    """

    conditions: str
    shown: str
    clip: Shown
    photographed: Shown
    frames: Mapping[int, Any]


def write_story(
    path: Path, story: Story, recording: Recording, report: calibration.Report, evidence: str = ""
) -> None:
    """Write the page, which is whole or absent and opens offline.

    Parameters
    ----------
    recording
        Of the clip, with rows of memory attention.
    report
        Of the calibration.
    evidence
        What these weights are evidence of; ends every caption.
    """
    save_page(
        path,
        "story.html.j2",
        figures=_figures(story, recording, report, evidence),
        story=story,
        report=report,
        profile=report["profile"],
        evidence=evidence,
    )


def _figures(
    story: Story, recording: Recording, report: calibration.Report, evidence: str
) -> dict[str, list[go.Figure]]:
    """The figures of each chapter."""
    name = recording.names[0]
    model = recording.header.model
    site = f"memory.layer{model.layers // 2}.cross"
    times = sorted(story.frames)[-LAST:]
    told = recollections(recording.clip(name), 1, times, site)
    strip = f"{name}, {site}, mean over heads; read from {row_sampling(recording)}.{evidence}"
    first = (
        f"Top {KEEP:.0%} of a frame's tokens, chosen at its first recollection; one clip.{evidence}"
    )
    return {
        "observed": [
            draw_memory_filmstrip(story.frames, told, strip),
            draw_recall(recall_curves(recording, KEEP), KEEP, first),
        ],
        "calibrated": [
            calibration.frontier(report, evidence=evidence),
            calibration.losses(report, evidence=evidence),
        ],
        "accelerated": [
            draw_window_player(
                clip.routed,
                model.window / model.grid,
                f"{clip.name}, profile {story.shown}; dark: shortcut.{evidence}",
            )
            for clip in (story.clip, story.photographed)
        ],
    }
