"""The style of figures, writing them to files, and placing labels."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from matplotlib.typing import RcKeyType

from copra.utils.files import canonical_json, replacing

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Okabe and Ito's palette and a part of Tol's, which color-blind people can distinguish; the dense model is
# near-black.
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8C564B"),
    *("#332288", "#882255", "#117733", "#DDCC77"),
)
DENSE = "#333333"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
FILLS = ("full", "none", "left", "top", "right", "bottom")
GRAY = "#8A8A8A"

STYLE: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.4,
    # The same data must give the same bytes, so that an unchanged figure is an unchanged artifact.
    "svg.hashsalt": "copra",
    "svg.fonttype": "path",
}


def styled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return the function, run with copra's style in place of the user's matplotlibrc."""

    @functools.wraps(function)
    def wrapper(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return function(*arguments, **options)

    return wrapper


@styled
def save(figure: Figure, svg: Path, png: Path, record: dict[str, Any] | None = None) -> None:
    """Write a figure as SVG and as PNG (200 dots per inch), each complete or absent.

    Equal figures give equal bytes: no date, no random ids. `record` is written as JSON into the metadata of
    the SVG file.
    """
    settle(figure)
    text = None if record is None else canonical_json(record)
    with replacing(svg) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Description": text})
    with replacing(png) as temporary:
        figure.savefig(temporary, format="png", dpi=200)


def settle(figure: Figure) -> None:
    """Compute the layout of the figure and freeze it: later drawing moves nothing."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def assign(names: Iterable[str], choices: Sequence[Any]) -> dict[str, Any]:
    """Return one choice per distinct name, in order of appearance; choices repeat when they run out."""
    return {name: choices[index % len(choices)] for index, name in enumerate(dict.fromkeys(names))}


def prefixed_ticks(axes: Axes) -> None:
    """Write the numbers of the x axis with SI prefixes; on a log axis at 1, 2 and 5 where decades are few."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    if axes.get_xscale() == "log":
        low, high = axes.dataLim.intervalx
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def note(axes: Axes, text: str) -> None:
    """Write in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GRAY)
    axes.set_axis_off()


def label_where_free(
    axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], obstacles: Sequence
) -> list[Annotation]:
    """Write each text beside its point at the first free place, if there is one; return the labels.

    `points` are in data coordinates; `obstacles` are boxes in pixels that a label must not cover. Call
    `settle` on the figure before. Places are tried in order: right, left, above, below and the four
    diagonals. (Of 24 labels, adjustText lets most cover points, and textalloc draws most far away.)
    """
    frame, taken, labels = axes.get_window_extent().padded(-8), list(obstacles), []
    for point, text in zip(points, texts, strict=True):
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            label = axes.annotate(
                text,
                point,
                xytext=(9 * x, 8 * y),
                textcoords="offset points",
                ha=("right", "center", "left")[x + 1],
                va=("top", "center", "bottom")[y + 1],
                fontsize=7.5,
                color="#333333",
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
            box = label.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box.padded(2))
                labels.append(label)
                break
            label.remove()
    return labels
