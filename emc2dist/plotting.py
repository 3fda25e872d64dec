"""What all pictures of reports and sweeps share: colours, fonts, frames, and how one becomes a file.

Figures are built as objects, never through pyplot, so there is no global state. The ten colours are told apart by
colour-blind readers (Petroff 2021, "Accessible color sequences for data visualization"). Sizes are chosen for a page
on which a picture is as wide as a phone, 360 CSS pixels, or wider.
"""

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emc2dist.terminal import say_once

COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#92dadd", "#94a4a2", "#717581",
)  # fmt: skip
WARNING = "#bd1f01"
GREY = "#6b7280"
FONT = 9.0
"""Points."""
_DPI = 180
_NO_GLYPH = re.compile(r"Glyph (\d+) .*missing from font")


@dataclass(frozen=True)
class Picture:
    """A picture as it stands on the page and in a file of its own."""

    name: str
    """The file's name without .png."""
    title: str
    caption: str
    alt: str
    """What it shows, for those who cannot see it."""
    png: bytes


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, inches."""
    figure = Figure((width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Figure) -> Axes:
    """One set of axes in the whole figure, framed as all are."""
    axes = figure.add_subplot()
    frame(axes)
    return axes


def frame(axes: Axes) -> None:
    """Small type, a faint grid, and no lines above and to the right."""
    axes.tick_params(labelsize=FONT - 1, colors="#374151")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.grid(color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)


def add_legend(axes: Axes, **where: Any) -> None:
    """The legend of what is labelled in the axes."""
    axes.legend(fontsize=FONT - 1, frameon=bool(not where), framealpha=0.8, edgecolor="#e5e7eb", **where)


def label(text: str, longest: int = 40) -> str:
    """Text that a run or a set brought, as matplotlib prints it as it stands: one line, no formulas, not too long."""
    line = " ".join(text.split())
    cut = line if len(line) <= longest else f"{line[: longest - 1]}…"
    return ("\u200b" + cut if cut.startswith("_") else cut).replace("$", r"\$")  # "_..." is left out of legends


def render(figure: Figure, kind: str = "png") -> bytes:
    """The figure as `png`, `pdf` or `svg`; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    dated = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}
    with rc_context({"svg.hashsalt": ""}), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        figure.savefig(buffer, format=kind, metadata={dated[kind]: None})
    for one in warned:
        if found := _NO_GLYPH.match(str(one.message)):
            say_once(
                "glyphs",
                f"pictures: the font has no sign for {chr(int(found[1]))!r} and others, of names of classes or the "
                "like; they are boxes there, and read rightly on the page",
            )
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return buffer.getvalue()
