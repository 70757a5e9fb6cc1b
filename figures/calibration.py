"""What a calibration found, as figures and as one page: frontier, losses and bounds, coverage, mass recall.

Reads the report that ``efficient-sam2 calibrate`` leaves beside the profile. Last comes what was promised over many
calibrations, against what was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from figures.export import save_page
from figures.paint import data_uri
from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError

Report = dict[str, Any]

ROOM = 0.09, 0.06
"""Shares of a figure's width and height that a label takes."""


def frontier(report: Report, theme: ThemeName = "light", evidence: str = "") -> go.Figure:
    """Draw predicted cost against predicted recall of every setting that was replayed, and what was run."""
    look = THEMES[theme]
    figure = go.Figure()
    for name, colour, size in (("replayed", look.skipped, 5), ("searched", look.kept, 10)):
        rows = report[name]
        figure.add_scatter(
            x=[row["cost"] for row in rows],
            y=[row["recall"] for row in rows],
            text=[row["said"] for row in rows],
            mode="markers",
            name={"replayed": "replayed", "searched": "run for real"}[name],
            marker={"color": colour, "size": size},
            hovertemplate="%{text}<br>cost %{x:.3f}, recall %{y:.3f}<extra></extra>",
        )
    line = report["frontier"]
    figure.add_scatter(
        x=[row["cost"] for row in line],
        y=[row["recall"] for row in line],
        mode="lines",
        name="frontier",
        line={"color": look.ink, "width": 1},
        hoverinfo="skip",
    )
    figure.update_xaxes(title="operations of a frame, against every window and key")
    figure.update_yaxes(title="recall predicted from recordings")
    caption = (
        f"{len(report['replayed'])} settings, thresholds from the statistics of {len(report['clips']['search'])} clips. "
        "Recall: object tokens of the next frame inside computed windows, times memory attention on keys that are "
        "read. Operations are counted, not timed."
    )
    return finish(figure, "Which settings are worth trying", caption + evidence, theme)


def losses(report: Report, theme: ThemeName = "light", evidence: str = "") -> go.Figure:
    """Draw the loss of each clip under each tested setting, with mean and bound."""
    look = THEMES[theme]
    figure = go.Figure()
    rows = report["tested"]
    labels = [f"{i + 1}. cost {row['cost']:.2f}" for i, row in enumerate(rows)]
    for label, row in zip(labels, rows, strict=True):
        figure.add_scatter(
            x=[label] * len(row["losses"]),
            y=row["losses"],
            text=report["counted"],
            mode="markers",
            marker={"color": look.skipped, "size": 7, "opacity": 0.7},
            name="a clip",
            showlegend=label == labels[0],
            hovertemplate="%{text}: %{y:+.1f}<extra></extra>",
        )
    stated = [
        (label, row["bound"]) for label, row in zip(labels, rows, strict=True) if row["bound"]
    ]
    methods = [bound["method"] for _, bound in stated]
    bar = " or ".join(
        ["its upper bound" + " (approximate)" * any("approximate" in of for of in methods)]
        * any("exact" not in of for of in methods)
        + ["the worst clip (exact share)"] * any("exact" in of for of in methods)
    )
    figure.add_scatter(
        x=[label for label, _ in stated],
        y=[bound["mean"] for _, bound in stated],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [bound["upper"] - bound["mean"] for _, bound in stated],
            "arrayminus": [0.0] * len(stated),
            "color": look.kept,
            "thickness": 2,
            "width": 8,
        },
        mode="markers",
        marker={"color": look.kept, "size": 11, "symbol": "diamond"},
        name=f"mean, and {bar}",
    )
    tested = "One setting alone was tested."
    if report["level"] is not None:
        tested = f"Testing stops at the first setting that does not keep {report['option']}."
        line = {"color": look.alarm, "dash": "dash"}
        figure.add_hline(
            y=report["level"],
            line=line,
            annotation_text=report["option"],
            annotation_position="top left",
        )
    lost = "J&F" if report["option"] == "max-drop" else "agreement with the dense run"
    figure.update_yaxes(title=f"loss, points of {lost}")
    figure.update_xaxes(title="settings in the order of testing")
    caption = (
        f"{len(report['counted'])} clips that the search has not seen; one point a clip and setting. "
        f"{tested} {report['certifiable']}"
    )
    return finish(figure, "What the tested settings cost", caption + evidence, theme)


def coverage(report: Report, theme: ThemeName = "light", evidence: str = "") -> go.Figure:
    """Draw windows kept against object tokens covered, by margin around the mask."""
    look = THEMES[theme]
    figure = go.Figure()
    rows_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["coverage"]:
        rows_of.setdefault((row["unit"], row["candidates"]), []).append(row)
    labelled = apart([(row["kept"], row["recall"]) for row in report["coverage"]])
    for ((unit, which), rows), colour in zip(rows_of.items(), look.series, strict=False):
        figure.add_scatter(
            x=[row["kept"] for row in rows],
            y=[row["recall"] for row in rows],
            text=[
                f"{row['margin_px']:g} px" if (row["kept"], row["recall"]) in labelled else ""
                for row in rows
            ],
            customdata=[row["margin_px"] for row in rows],
            hovertemplate="%{customdata:g} px: %{x:.2f} computed, %{y:.3f} covered<extra></extra>",
            mode="lines+markers+text",
            textposition="bottom right",
            cliponaxis=False,
            name={"best": "best mask", "all": "all candidate masks"}[which] + f", by {unit}s",
            line={"color": colour},
        )
    figure.update_xaxes(title="share of windows computed")
    figure.update_yaxes(title="object tokens of the next frame covered")
    caption = (
        f"{len(report['clips']['search'])} clips, dense masks; numbers at the points: margin around the mask in pixels "
        "of the model's input. Runs choose among them."
    )
    return finish(figure, "How far must windows reach?", caption + evidence, theme)


def apart(points: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """Choose points whose labels don't overprint: none within `ROOM` of the figure of one that was chosen before."""
    spans = [max(max(axis) - min(axis), 1e-9) for axis in zip(*points, strict=True)]
    chosen: list[tuple[float, float]] = []
    for x, y in points:
        near = any(
            abs(x - u) / spans[0] < ROOM[0] and abs(y - v) / spans[1] < ROOM[1] for u, v in chosen
        )
        if not near:
            chosen.append((x, y))
    return set(chosen)


def mass_recall(report: Report, theme: ThemeName = "light", evidence: str = "") -> go.Figure:
    """Draw, by layer, the attention that the first-chosen tokens of a memory frame still hold later."""
    look = THEMES[theme]
    recall = report["recall"]
    layers = recall.get("layers", [])
    figure = make_subplots(
        1, max(1, len(layers)), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[f"layer {i}" for i in range(len(layers))],
    )  # fmt: skip
    for i, curves in enumerate(layers):
        for age, curve, colour in zip(recall["ages"], curves, look.series, strict=False):
            figure.add_scatter(
                x=recall["share"],
                y=curve,
                name=f"at age {age}",
                line={"color": colour},
                showlegend=i == 0,
                row=1,
                col=i + 1,
            )
    shares = [0.001, 0.01, 0.1, 1.0]
    figure.update_xaxes(
        title="tokens kept",
        type="log",
        tickvals=shares,
        ticktext=[f"{100 * s:g} %" for s in shares],
    )
    figure.update_yaxes(title="mass recall", range=[0, 1.02], col=1)
    exposed = ", ".join(f"{share:.0%}" for share in recall.get("exposure", []))
    caption = (
        "Tokens are ranked when a memory frame is first read; what share of the attention inside that frame do they hold "
        f"at later ages? Of all attention, {exposed} falls on frames that may be pruned, by layer. From here comes the "
        "kept share of each layer."
    )
    return finish(figure, "How long does a choice of tokens last?", caption + evidence, theme)


def loss_over_frames(report: Report, theme: ThemeName = "light", evidence: str = "") -> go.Figure:
    """Draw agreement lost under the chosen setting against the frame, a line a clip of the promise and their mean."""
    look = THEMES[theme]
    figure = go.Figure()
    clips = report["by_frame"]
    worst = {row["clip"] for row in report["worst"]}
    together: dict[int, list[float]] = {}
    for name, rows in clips.items():
        for frame, agreed in rows:
            together.setdefault(frame, []).append(100 - agreed)
        figure.add_scatter(
            x=[frame for frame, _ in rows],
            y=[100 - agreed for _, agreed in rows],
            mode="lines",
            name=name if name in worst else "another clip",
            legendgroup=None if name in worst else "others",
            showlegend=name in worst or name == next((n for n in clips if n not in worst), None),
            line={"color": look.alarm if name in worst else look.skipped, "width": 1},
            hovertemplate=f"{name}, frame %{{x}}: %{{y:.1f}}<extra></extra>",
        )
    figure.add_scatter(
        x=sorted(together),
        y=[float(np.mean(together[frame])) for frame in sorted(together)],
        mode="lines",
        name="mean of those that last so long",
        line={"color": look.kept, "width": 3},
    )
    figure.update_xaxes(title="frame")
    figure.update_yaxes(title="points of agreement with the dense run lost", rangemode="tozero")
    caption = (
        f"{len(clips)} clips of the promise under the chosen setting; in the colour of alarm those that lose most. What a "
        "frame gets wrong goes into memory, so losses grow with frames: longer videos than these are not promised anything."
    )
    return finish(figure, "When is it lost?", caption + evidence, theme)


def write_report(
    report: Report, path: Path, evidence: str = "", pictures: Sequence[NDArray[np.uint8]] = ()
) -> None:
    """Write the page: figures, the chosen profile, what limited it, the worst clips. Opens offline.

    Parameters
    ----------
    pictures
        RGB, of each of the report's worst clips: the frame that agrees least, densely and by the profile.
    evidence
        What these weights are evidence of; ends every caption.
    """
    draw = [frontier, losses, coverage] + ([mass_recall] if report["recall"] else [])
    draw += [loss_over_frames] if report["by_frame"] else []
    named = ("promise", "said", "certifiable", "tested", "profile", "adapter", "base")
    fields = {name: report[name] for name in named}
    save_page(
        path,
        "calibration.html.j2",
        figures=[one(report, evidence=evidence) for one in draw],
        expected=report["profile"]["promise"],
        worst=[
            {**row, "picture": data_uri(picture)}
            for row, picture in zip(report["worst"], pictures, strict=False)
        ],
        **fields,
    )


def draw_promise(
    found: Mapping[str, Any],
    *,
    title: str = "How often is the promise kept?",
    theme: ThemeName = "light",
    evidence: str = "",
) -> go.Figure:
    """Draw the mean loss of the chosen setting over all clips, a point a calibration, beside the loss promised.

    Parameters
    ----------
    found
        What ``benchmarks/promise.py`` writes.
    """
    studies = found["studies"]
    if not studies:
        raise InputError("no studies given; expected at least one; run benchmarks/promise.py")
    look = THEMES[theme]
    figure = go.Figure()
    rng = np.random.default_rng(0)
    told: set[bool] = set()  # kinds that the legend has
    for n, study in enumerate(studies):
        means = np.array([mean for mean, _ in study["draws_shown"]])
        over = np.array([mean > stated for mean, stated in study["draws_shown"]], bool)
        place = n + rng.uniform(-0.3, 0.3, len(means))
        for broken, colour in ((False, look.kept), (True, look.alarm)):
            picked = over == broken
            figure.add_scatter(
                x=place[picked],
                y=means[picked],
                mode="markers",
                marker={"color": colour, "size": 5, "opacity": 0.6},
                name="more is lost than promised" if broken else "kept",
                legendgroup=str(broken),
                showlegend=bool(picked.any()) and broken not in told,
                hovertemplate="%{y:.2f} points<extra></extra>",
            )
            told |= {broken} if picked.any() else set()
        figure.add_scatter(
            x=[n - 0.4, n + 0.4],
            y=[study["max_drop"]] * 2,
            mode="lines",
            line={"color": look.ink, "width": 2},
            name="promised",
            showlegend=n == 0,
        )
    labels = [
        f"max-drop {s['max_drop']:g}<br>{s['coverage']:.1%} of {s['draws']} covered"
        for s in studies
    ]
    figure.update_xaxes(tickvals=list(range(len(studies))), ticktext=labels)
    figure.update_yaxes(title="mean loss over all clips / points of J&F", rangemode="tozero")
    caption = (
        f"{found['clips']} clips and {len(found['settings'])} settings ({found['population']['model']}); calibration sets "
        f"drawn with replacement, the whole choice repeated in each; stated at {found['confidence']:.0%}. A point is a "
        "draw that chose a setting (the first 200); one that chose none loses nothing and counts as covered."
    )
    return finish(figure, title, caption + evidence, theme, below=72)
