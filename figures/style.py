"""One look for all figures: two themes, one meaning a colour, titles above and captions below.

The colours are those of Okabe and Ito, which people with any kind of colour vision tell apart; heat maps use
perceptually uniform scales.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import plotly.graph_objects as go

from probes.errors import InputError

ThemeName = Literal["light", "dark"]

DEMO = (
    "demo model: illustrates the method; evidence about SAM 2 itself needs an official checkpoint"
)
RANDOM = "random weights: shows the mechanics and says nothing about SAM 2's attention or accuracy"

HEAT = "Inferno"
"""Scale of attention, dark = little; perceptually uniform."""

PAPER = {"xref": "paper", "yref": "paper"}
"""From the lower left corner of the plots, 0, to the upper right one, 1."""

LINE_HEIGHT = 17
"""Pixels of one caption line."""

LEGENDS = {
    "beside": {"x": 1.01, "y": 1},
    "above": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
}

LETTER_WIDTH = 6.5
"""Mean pixels of a caption's letter, in the widest of the fonts."""


@dataclass(frozen=True)
class Theme:
    """Colours by meaning.

    Attributes
    ----------
    paper, ink, faint, grid
        Background, text, secondary text, grid lines.
    kept, skipped, alarm
        What is computed or read; what takes the shortcut or is not read; a bound that is crossed.
    series
        Colours of lines and bars that have no other meaning, in order of use.
    """

    paper: str
    ink: str
    faint: str
    grid: str
    kept: str
    skipped: str
    alarm: str
    series: tuple[str, ...]

    def nth(self, n: int) -> str:
        """Colour of the n-th of several lines; they begin anew when all are used."""
        return self.series[n % len(self.series)]


class _Themes(dict[str, Theme]):
    """Themes by name; another name is refused."""

    def __missing__(self, name: str) -> Theme:
        raise InputError(f"theme {name!r} given; expected light or dark; choose one of them")


THEMES = _Themes(
    {
        "light": Theme(
            paper="#ffffff",
            ink="#1f2328",
            faint="#59636e",
            grid="#e4e7ea",
            kept="#0072b2",
            skipped="#b4bac1",
            alarm="#d55e00",
            series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
        ),
        "dark": Theme(
            paper="#14181d",
            ink="#e8eaed",
            faint="#a3abb4",
            grid="#2c333b",
            kept="#56b4e9",
            skipped="#59636e",
            alarm="#ff8c42",
            series=("#56b4e9", "#ff8c42", "#2fc79b", "#e59ac4", "#f0b72f", "#8fd0f7"),
        ),
    }
)

OBJECTS = ("#56b4e9", "#2fc79b", "#ffffff", "#cc79a7", "#f0e442", "#d55e00")
"""Colours of objects over a picture, by their order, the first ones absent from `HEAT`; for both themes."""


def finish(
    figure: go.Figure,
    title: str,
    caption: str,
    theme: ThemeName,
    *,
    width: int = 900,
    height: int = 480,
    below: int = 56,
    top: int = 64,
    left: int = 66,
    right: int = 28,
    legend: Literal["beside", "above"] | None = None,
) -> go.Figure:
    """Give a figure its theme, title and caption, and return it.

    Parameters
    ----------
    caption
        What is shown, of how much, and what it is evidence of; wrapped to the plots' width.
    width, height
        Of the whole figure in pixels; the caption's lines come on top of `height`.
    below, top, left, right
        Pixels between the plots and the caption (axis title, slider), and around the plots.
    legend
        Where it stands: beside the plots, in one line above them, or where plotly puts it.
    """
    look = THEMES[theme]
    lines = textwrap.wrap(caption, max(20, int((width - left - right) / LETTER_WIDTH)))
    figure.update_layout(
        template=template(theme),
        title={"text": title, "x": 0, "xref": "paper", "y": 1, "yref": "container"},
        title_pad={"t": 18},
        title_yanchor="top",
        width=width,
        height=height + LINE_HEIGHT * len(lines),
        margin={"l": left, "r": right, "t": top, "b": below + 14 + LINE_HEIGHT * len(lines)},
    )
    said = "<br>".join(escape(line, quote=False) for line in lines)
    font = {"size": 12, "color": look.faint}
    write(figure, said, 0, 0, "left top", name="caption", yshift=-below, align="left", font=font)
    if legend is not None:
        figure.update_layout(legend=LEGENDS[legend])
    return figure


def write(
    figure: go.Figure,
    text: str,
    x: float | str,
    y: float | str,
    anchor: str = "left bottom",
    place: Mapping[str, Any] = PAPER,
    **look: Any,
) -> None:
    """Write a text that points at nothing.

    Parameters
    ----------
    anchor
        Which point of the text lies at `x` and `y`.
    place
        What these are measured in: `PAPER` or axes.
    look
        Other properties of a plotly annotation.
    """
    across, down = anchor.split()
    figure.add_annotation(
        text=text, x=x, y=y, xanchor=across, yanchor=down, showarrow=False, **place, **look
    )


def error_bars(
    middle: Sequence[float], ends: Sequence[tuple[float, float] | None], **look: object
) -> dict[str, object] | None:
    """Bars from each value to the ends of its interval; None where no value has one."""
    if not any(ends):
        return None
    pairs = list(zip(middle, ends, strict=True))
    return {
        "array": [end[1] - value if end else 0 for value, end in pairs],
        "arrayminus": [value - end[0] if end else 0 for value, end in pairs],
        "thickness": 1.2,
        "width": 4,
        **look,
    }


def template(theme: ThemeName) -> go.layout.Template:
    """The plotly template of a theme."""
    look = THEMES[theme]
    axis = {
        "gridcolor": look.grid,
        "zerolinecolor": look.grid,
        "linecolor": look.faint,
        "ticks": "outside",
        "tickcolor": look.grid,
        "title": {"standoff": 8, "font": {"size": 14}},
        "automargin": False,
    }
    return go.layout.Template(
        layout={
            "paper_bgcolor": look.paper,
            "plot_bgcolor": look.paper,
            "font": {
                "family": "Inter, system-ui, 'DejaVu Sans', Arial, sans-serif",
                "size": 13,
                "color": look.ink,
            },
            "title": {"font": {"size": 17}},
            "colorway": look.series,
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {"font": {"size": 13}},
            "coloraxis": {"colorscale": HEAT},
        }
    )


def evidence(weights: str) -> str:
    """What a picture from these weights is evidence of: a sentence for the caption, or nothing.

    Parameters
    ----------
    weights
        ``"demo"``, ``"random"``, or anything else for a checkpoint.
    """
    said = {"demo": DEMO, "random": RANDOM}.get(weights, "")
    return f" {said[0].upper()}{said[1:]}." if said else ""
