"""Two runs side by side: masks, agreement, attention of the same pixel, key mass and times, with one slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from figures.paint import (
    Picture,
    add_scale,
    colour,
    darkened,
    data_uris_within,
    heat_map,
    outline,
    stretch,
)
from figures.player import frame_slider, play_buttons
from figures.sides import (
    Map,
    Pair,
    Recorded,
    common_site,
    has_rows,
    moved_mass,
    paired,
    pictures_of,
    pixel_attention,
    read_side,
    received,
)
from figures.style import THEMES, ThemeName, evidence, finish
from probes.errors import InputError
from probes.records import Recording

WIDTH, GAP_X, GAP_Y, CHART = 300, 44, 40, 150
"""Pixels: width of a picture, gaps between panels, height of a chart."""

LEFT, RIGHT, TOP, BELOW, AXIS = 50, 96, 92, 140, 42
"""Pixels around the panels; below them are the axes of charts, the slider and, behind `BELOW`, the caption."""

BUDGET = 5_000_000
"""Bytes of all pictures together."""

RUNS = ("#56b4e9", "#f0e442")
"""Outlines of the first run and of the second over a picture, both absent from the heat scale."""

Source = Recording | Path | str


def compare(
    a: Source,
    b: Source,
    video: Any = None,
    *,
    clip: str | tuple[str, str] | None = None,
    site: str | None = None,
    query_xy: tuple[float, float] | None = None,
    object: int | None = None,
    halves: bool = False,
    frame: int | None = None,
    theme: ThemeName = "light",
) -> go.Figure:
    """Lay two runs side by side: of two profiles, two models, or two halves of a video.

    Over each frame the slider shows both masks, what the same pixel attends to in both runs, and the key mass of both with
    its difference; below stand, frame by frame, the agreement of the masks (IoU), the share of the key mass that lies
    elsewhere, and times. What a run does not hold is left out, and what an accelerated run did not compute stays empty.

    Parameters
    ----------
    a, b
        Each a `Recording` or the path of one, or a folder of ``efficient-sam2 segment``, which has masks and times.
    video
        Anything `probes.open_video` takes; for `halves` a tuple of two. None shows a recording's thumbnails.
    clip
        Name of the clip in recordings of several; a tuple of two where they differ.
    site
        Whose attention is shown, recorded in both; None: the first one, those with rows before others.
    query_xy
        The pixel that attends, (x, y) in pixels of the video; None: the centre of the object in the first run, frame by
        frame.
    object
        Id of the object; None: the first that both have.
    halves
        Whether the runs are of two halves of a video, or of two clips: their frames belong together by order, and masks are
        not held against each other.
    frame
        That is shown before the slider is used, and in a PNG: its index in the first run; None: the first.

    Raises
    ------
    InputError
        One is no run, they are of other sizes, frames, videos or objects, the video is another, the pixel lies outside it,
        or there is no such site, object, frame or clip.
    """
    names = clip if isinstance(clip, tuple) else (clip, clip)
    pair = paired(read_side(a, names[0]), read_side(b, names[1]), halves)
    site = common_site(pair, site)
    if object is not None and object not in pair.objects:
        raise InputError(
            f"object {object} was asked for; both runs have {', '.join(map(str, pair.objects))}; choose one of them"
        )
    if frame is not None and frame not in pair.a.frames:
        raise InputError(
            f"frame {frame} was asked for; the runs have frames {pair.a.frames[0]} to {pair.a.frames[-1]}; choose one"
        )
    tall, wide = pair.a.size
    if query_xy is not None and not (0 <= query_xy[0] < wide and 0 <= query_xy[1] < tall):
        raise InputError(
            f"pixel ({query_xy[0]:g}, {query_xy[1]:g}) was given; the video is {wide}x{tall}; choose one inside"
        )
    videos = video if isinstance(video, tuple) else (video, video)
    if halves and video is not None and not isinstance(video, tuple):
        raise InputError(
            "one video was given for two halves; expected a tuple of two; cut the video where the runs are, or give none"
        )
    view = _View(pair, site, pair.objects[0] if object is None else object, query_xy)
    pictures = [
        pictures_of(side, its, WIDTH) for side, its in zip((pair.a, pair.b), videos, strict=True)
    ]
    return _draw(view, pictures, 0 if frame is None else pair.a.frames.index(frame), theme)


@dataclass(frozen=True)
class _View:
    """What of two runs is shown."""

    pair: Pair
    site: str | None
    object: int
    query_xy: tuple[float, float] | None

    @property
    def recorded(self) -> tuple[Recorded, Recorded] | None:
        """Both recordings, where attention is compared."""
        a, b = self.pair.a.recorded, self.pair.b.recorded
        return (a, b) if a and b and self.site else None

    @property
    def asks_pixels(self) -> bool:
        """Whether both hold what a pixel attends to."""
        return bool(self.recorded) and all(
            has_rows(r, self.site or "") for r in self.recorded or ()
        )

    def queries(self, t: int) -> list[tuple[float, float]]:
        """The pixel that attends in either run on a frame, as shares; of halves each run's own object has a centre."""
        tall, wide = self.pair.a.size
        if self.query_xy is not None:
            return [(self.query_xy[0] / wide, self.query_xy[1] / tall)] * 2
        sides = zip((self.pair.a, self.pair.b), self.pair.frames[t], strict=True)
        found = [_centre(side.masks[frame].get(self.object)) for side, frame in sides]
        return [found[0]] * 2 if self.pair.same_video else found


def _centre(mask: ArrayLike | None) -> tuple[float, float]:
    """The pixel of a mask nearest to its centroid, as shares of width and height; the middle of an empty one."""
    inside = np.argwhere(np.asarray(mask)) if mask is not None else np.zeros((0, 2))
    if not len(inside):
        return 0.5, 0.5
    y, x = inside[np.hypot(*(inside - inside.mean(0)).T).argmin()]
    tall, wide = np.asarray(mask).shape
    return float((x + 0.5) / wide), float((y + 0.5) / tall)


# ---------------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class _Panel:
    """A picture of each frame, with heat or none on it.

    Attributes
    ----------
    pictures
        By frame; None for a plain ground.
    heat
        By frame, in even shares, None where nothing is known; None altogether where no heat is meant.
    marks
        By frame, as shares: the pixel that attends.
    """

    title: str
    pictures: Sequence[Picture] | None
    heat: Sequence[Map | None] | None = None
    marks: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class _Chart:
    """Numbers by frame: lines by name, each with its colour."""

    title: str
    lines: Mapping[str, tuple[Sequence[float], str]]
    top: float


def _panels(view: _View, pictures: Sequence[Sequence[Picture]]) -> list[list[_Panel | None]]:
    """Rows of three panels."""
    pair, names, site = view.pair, view.pair.names, view.site
    frames, sides = range(len(pair.frames)), (0, 1)
    own = [
        _Panel(f"masks: {name}", [_outlined(view, pictures[s][t], t, s) for t in frames])
        for s, name in zip(sides, names, strict=True)
    ]
    keys = " ".join(f'<span style="color:{RUNS[s]}">■</span> {names[s]}' for s in sides)
    both = _Panel(f"masks: {keys}", [_outlined(view, pictures[0][t], t, 0, 1) for t in frames])
    if view.recorded is None or site is None:
        apart = [_differing(view, pictures[0][t], t) for t in frames]
        return [[*own, _Panel("in one mask alone", apart) if pair.same_video else None]]
    dark = [[_outlined(view, darkened(pictures[s][t]), t, s) for t in frames] for s in sides]
    mass = [
        [received(of, site, pair.frames[t][s], view.object) for t in frames]
        for s, of in zip(sides, view.recorded, strict=True)
    ]
    received_by = [_Panel(f"key mass: {names[s]}", dark[s], mass[s]) for s in sides]
    first = both if pair.same_video else own[0]
    if not view.asks_pixels:
        return [[first, *received_by]]
    marks = [view.queries(t) for t in frames]
    looks = [
        _Panel(
            f"the pixel attends to: {names[s]}",
            dark[s],
            [
                pixel_attention(of, site, pair.frames[t][s], view.object, marks[t][s])
                for t in frames
            ],
            None if site.endswith(".cross") else [mark[s] for mark in marks],
        )
        for s, of in zip(sides, view.recorded, strict=True)
    ]
    marked = _Panel(first.title, first.pictures, None, [mark[0] for mark in marks])
    return [[marked, *looks], [_second(view, own[1], mass), *received_by]]


def _second(view: _View, other: _Panel, mass: Sequence[Sequence[Map | None]]) -> _Panel | None:
    """The difference of key mass, or the other video's frames."""
    if not view.pair.same_video:
        return other
    pairs = list(zip(*mass, strict=True))
    apart = [None if a is None or b is None or a.shape != b.shape else b - a for a, b in pairs]
    most = max((float(np.nanmax(np.abs(d))) for d in apart if d is not None), default=0.0)
    if not most:
        return (
            None
            if all(d is None for d in apart)
            else _Panel("key mass: no difference", None, apart)
        )
    return _Panel(f"difference of key mass: ±{most:.2g} even shares", None, apart)


def _outlined(view: _View, picture: Picture, t: int, *sides: int) -> Picture:
    """A frame with the masks of one run or both, the second inside the first where they agree."""
    thick = max(2, picture.shape[1] // 150)
    for n, side in enumerate(sides, 1):
        run = (view.pair.a, view.pair.b)[side]
        for mask in run.masks[view.pair.frames[t][side]].values():
            picture = outline(picture, mask, RUNS[side], thick * (1 + len(sides) - n))
    return picture


def _differing(view: _View, picture: Picture, t: int) -> Picture:
    """A dark frame, but where one run alone has an object, in that run's colour."""
    drawn = darkened(picture)
    for i in view.pair.objects:
        a, b = view.pair.overlap(t, i)
        for only, shade in ((a & ~b, RUNS[0]), (b & ~a, RUNS[1])):
            drawn[stretch(only, *drawn.shape[:2]).astype(bool)] = colour(shade)
    return drawn


def _charts(view: _View, theme: ThemeName) -> list[_Chart]:
    """What is known by frame: agreement, moved key mass, times."""
    pair, look, charts = view.pair, THEMES[theme], []
    if pair.same_video:
        lines = {
            f"object {i}": (pair.agreement(i), look.nth(n)) for n, i in enumerate(pair.objects)
        }
        said = " ".join(
            f'<span style="color:{look.nth(n)}">{i}</span>' for n, i in enumerate(pair.objects)
        )
        objects = f", object {said}" if len(pair.objects) > 1 else ""
        charts.append(_Chart(f"agreement of masks / IoU{objects}", lines, 1.05))
    if view.recorded and view.site and (pair.same_video or view.site.endswith(".cross")):
        a, b = view.recorded
        moved = [moved_mass(a, b, view.site, frames, view.object) for frames in pair.frames]
        if not np.isnan(moved).all():
            top = max(0.01, 1.1 * float(np.nanmax(moved)))
            charts.append(_Chart("share of key mass elsewhere", {"": (moved, look.nth(0))}, top))
    if pair.a.milliseconds and pair.b.milliseconds:
        times = [
            [side.milliseconds.get(frames[s], np.nan) for frames in pair.frames]
            for s, side in enumerate((pair.a, pair.b))
        ]
        said = " ".join(
            f'<span style="color:{look.nth(s)}">—</span> {name}'
            for s, name in enumerate(pair.names)
        )
        lines = {name: (times[s], look.nth(s)) for s, name in enumerate(pair.names)}
        charts.append(_Chart(f"ms a frame: {said}", lines, 1.1 * float(np.nanmax(times))))
    return charts


def _caption(view: _View) -> str:
    """What is shown, of what, and what it is evidence of."""
    pair, parts = view.pair, []
    a, b = pair.names
    if view.recorded and view.site:
        site = view.site
        parts.append(
            f"Attention of {site}, mean over heads, as multiples of the even share among what took part."
        )
        if site.endswith(".cross"):
            parts.append(
                f"Memory of object {view.object}: summed over its frames, and drawn over the frame that recalls."
            )
        elif not site.startswith("encoder."):
            parts.append(f"Of object {view.object}.")
        if view.asks_pixels:
            parts.append(
                "Cross: the pixel that attends"
                + ("" if view.query_xy else f", the centre of object {view.object}")
                + "; the nearest stored query answers."
            )
        if site.endswith((".cross", ".self")):
            parts.append("Maps of key mass are of the stored queries alone.")
        if pair.same_video and view.asks_pixels:
            parts.append(f"Difference: {b} less {a}, red where {b} has more.")
        parts.append("Empty: not computed, not recorded, or prompted.")
        weights = {
            "random" if "random" in r.header.model.name else r.header.model.name
            for r in view.recorded
        }
        parts += [evidence(name).strip() for name in sorted(weights)]
    if not pair.same_video:
        parts.append("Two videos: frames belong together by their order.")
    return " ".join(filter(None, parts)) or f"{a} beside {b}."


# ---------------------------------------------------------------------- drawing


def _draw(
    view: _View, pictures: Sequence[Sequence[Picture]], shown: int, theme: ThemeName
) -> go.Figure:
    pair, (tall, wide) = view.pair, view.pair.a.size
    panels, charts = _panels(view, pictures), _charts(view, theme)
    heights = [round(WIDTH * tall / wide)] * len(panels) + ([CHART] if charts else [])
    inner = (sum(heights) + GAP_Y * (len(heights) - 1), 3 * WIDTH + 2 * GAP_X)
    titles = [panel.title if panel else "" for row in panels for panel in row]
    figure = make_subplots(
        len(heights), 3, row_heights=heights, subplot_titles=[*titles, *(c.title for c in charts)],
        horizontal_spacing=GAP_X / inner[1], vertical_spacing=GAP_Y / inner[0] if len(heights) > 1 else 0,
    )  # fmt: skip
    figure.update_annotations(font_size=13)
    labels = [at if pair.same_video else t for t, (at, _) in enumerate(pair.frames)]
    moving: list[tuple[int, Sequence[Any]]] = []

    def add(traces: Sequence[Any], r: int, c: int) -> None:
        """Add a trace that is another one on each frame."""
        moving.append((len(figure.data), traces))
        figure.add_trace(traces[shown], row=r, col=c)

    sources = iter(_sources(panels))
    for r, row in enumerate(panels, 1):
        for c, panel in enumerate(row, 1):
            if panel is None:
                figure.update_xaxes(visible=False, row=r, col=c)
                figure.update_yaxes(visible=False, row=r, col=c)
                continue
            if panel.pictures is not None:
                add([_image(next(sources), p, wide, tall) for p in panel.pictures], r, c)
            if panel.heat is not None:
                plain = panel.pictures is None
                unknown = np.full((1, 1), np.nan)
                heat = [unknown if shares is None else shares for shares in panel.heat]
                add([heat_map(shares, wide, tall, plain) for shares in heat], r, c)
            if panel.marks is not None:
                add([_cross(x * wide, y * tall) for x, y in panel.marks], r, c)
            figure.update_xaxes(range=[0, wide], visible=False, row=r, col=c)
            figure.update_yaxes(range=[tall, 0], visible=False, scaleanchor=False, row=r, col=c)
    for c, chart in enumerate(charts, 1):
        _add_chart(figure, chart, labels, len(heights), c)
        add([_here(x, chart.top, theme) for x in labels], len(heights), c)
    for c in range(len(charts) + 1, 4):
        figure.update_xaxes(visible=False, row=len(heights), col=c)
        figure.update_yaxes(visible=False, row=len(heights), col=c)
    figure.frames = [
        go.Frame(data=[of[t] for _, of in moving], traces=[n for n, _ in moving], name=str(t))
        for t in range(len(labels))
    ]
    figure.update_layout(
        sliders=[frame_slider(labels, shown)], updatemenus=[play_buttons(theme)], showlegend=False
    )
    finish(
        figure, f"{pair.names[0]} beside {pair.names[1]}", _caption(view), theme,
        width=inner[1] + LEFT + RIGHT, height=inner[0] + TOP + BELOW, below=BELOW, top=TOP, left=LEFT, right=RIGHT,
    )  # fmt: skip
    for control in (*figure.layout.sliders, *figure.layout.updatemenus):
        control.pad.t += AXIS  # below the axes of the charts
    _colour(figure, panels, theme)
    return figure


def _sources(panels: Sequence[Sequence[_Panel | None]]) -> list[str]:
    """All pictures as addresses, panel by panel."""
    painted = [p for row in panels for panel in row if panel for p in panel.pictures or ()]
    return data_uris_within(painted, BUDGET)


def _image(source: str, picture: Picture, wide: int, tall: int) -> go.Image:
    h, w = picture.shape[:2]
    dx, dy = wide / w, tall / h
    return go.Image(source=source, x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, hoverinfo="skip")


def _cross(x: float, y: float) -> go.Scatter:
    line = {"width": 3, "color": "#ffffff"}
    marker = {"symbol": "cross-thin", "size": 15, "line": line}
    return go.Scatter(x=[x], y=[y], mode="markers", marker=marker, hoverinfo="skip")


def _here(x: int, top: float, theme: ThemeName) -> go.Scatter:
    """Where the slider stands."""
    line = {"color": THEMES[theme].faint, "width": 1.5, "dash": "dot"}
    return go.Scatter(x=[x, x], y=[0, top], mode="lines", line=line, hoverinfo="skip")


def _add_chart(figure: go.Figure, chart: _Chart, x: Sequence[int], r: int, c: int) -> None:
    for name, (values, shade) in chart.lines.items():
        said = f"{name}, " if name else ""
        figure.add_scatter(
            x=x, y=values, name=name, mode="lines+markers", line={"color": shade, "width": 2}, marker={"size": 4},
            hovertemplate=f"{escape(said)}frame %{{x}}: %{{y:.3g}}<extra></extra>", row=r, col=c,
        )  # fmt: skip
    figure.update_xaxes(title="frame", row=r, col=c)
    figure.update_yaxes(range=[0, chart.top], nticks=5, row=r, col=c)


def _colour(figure: go.Figure, panels: Sequence[Sequence[_Panel | None]], theme: ThemeName) -> None:
    """Set the colours of all heat, and of differences."""
    there = [panel for row in panels for panel in row if panel and panel.heat]
    shares = [h for p in there if p.pictures is not None for h in p.heat or () if h is not None]
    if shares:
        add_scale(figure, max(float(np.nanmax(h)) for h in shares), theme)
    apart = [h for p in there if p.pictures is None for h in p.heat or () if h is not None]
    most = max((float(np.nanmax(np.abs(h))) for h in apart), default=0.0) or 1.0
    blue_to_red = {"cmin": -most, "cmax": most, "colorscale": "RdBu_r", "showscale": False}
    figure.update_layout(coloraxis2=blue_to_red)
