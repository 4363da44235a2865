"""The style of figures: colors of methods, axes, titles, and writing figures to files."""

import functools
import hashlib
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
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
KINDS: dict[str, tuple[str, Any]] = {
    "coconut": ("#D55E00", "-"),
    "pause_as_thought": ("#009E73", (0, (5, 1.6))),
    "cot": ("#0072B2", (0, (9, 2))),
    "no_cot": ("#E69F00", (0, (1.2, 1.4))),
    "without_thought": ("#8C6BB1", (0, (5, 1.4, 1.2, 1.4))),
    "without_curriculum": ("#8C564B", (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2))),
    "pause": ("#117733", (0, (3, 1.6))),
    "codi": ("#CC79A7", "-"),
    "looped": ("#56B4E9", (0, (3, 1, 1, 1))),
    "icot_si": ("#332288", (0, (5, 1.4, 1.2, 1.4))),
    "icot_kd": ("#882255", (0, (5, 1.4, 1.2, 1.4))),
    "scratchpad": ("#999999", (0, (9, 2))),
    "few_shot": ("#999933", (0, (1.2, 1.4))),
}
"""Color and line style of each kind of method, in every figure."""
DASHES = ("-", (0, (9, 2)), (0, (5, 1.6)), (0, (5, 1.4, 1.2, 1.4)))
SHADES = (0.0, -0.4, 0.45, -0.65, 0.65)
"""Mixture with white (positive) or black of the color of the first, second, ... method of one kind."""
DENSE = "#333333"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
FILLS = ("full", "none", "left", "top", "right", "bottom")
GRAY = "#767676"
FRONT, FRONT_WIDTH = "#D6D6D6", 2.4
"""The color and width of the Pareto front: a band that lies under everything else."""

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


@dataclass(frozen=True)
class Look:
    """The color and line style of a method."""

    color: str
    dash: Any


def method_looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Return the look of each method; `methods` maps methods to their kinds, with all methods of these kinds.

    Known kinds have the looks of `KINDS`; others have one of the same palette, chosen by their name alone, so
    that it is the same in every experiment. Further methods of one kind have other shades of its color.
    """
    seen: Counter[str] = Counter()
    looks = {}
    for method, kind in methods.items():
        color, dash = KINDS.get(kind) or _by_name(kind)
        looks[method] = Look(mixed(color, SHADES[seen[kind] % len(SHADES)]), dash)
        seen[kind] += 1
    return looks


def _by_name(kind: str) -> tuple[str, Any]:
    number = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "big")
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def mixed(color: str, share: float) -> str:
    """Return a color mixed with this share of white, or of black where it is negative."""
    other = 1.0 if share > 0 else 0.0
    red, green, blue = ((1 - abs(share)) * channel + abs(share) * other for channel in to_rgb(color))
    return to_hex((red, green, blue))


def headline(figure: Figure, text: str) -> None:
    """Write the title of a whole figure at its upper left, in lines that fit its width."""
    lines = textwrap.wrap(text, int(11.5 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle("\n".join(lines), x=0.012, ha="left", fontsize=10.5, fontweight="bold", parse_math=False)


def marker_size(marker: str, size: float = 7.0) -> float:
    """Return the size in points at which a marker looks as large as a circle of `size`."""
    return 1.35 * size if marker in "PX*" else size


def marker_handle(label: str, marker: str, fill: Any = "full") -> Line2D:
    """Return the entry of a marker in a legend."""
    look: dict[str, Any] = {"linestyle": "", "color": GRAY, "markersize": marker_size(marker, 6.5)}
    return Line2D([], [], marker=marker, fillstyle=fill, markerfacecoloralt="white", label=label, **look)


def legend_below(figure: Figure, handles: Sequence[Line2D], caption: str = "") -> None:
    """Draw a legend under the axes, below a caption; the figure grows by its rows."""
    widths = [4.4 * len(str(handle.get_label())) + 42 for handle in handles]
    room = 72 * figure.get_figwidth()
    columns = len(handles) if sum(widths) <= room else max(1, int(room / max(widths)))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(handles) / columns))
    legend = figure.legend(
        handles=list(handles), loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.4
    )
    legend.set_title(caption)
    legend.get_title().set(fontsize=7.5, color=GRAY)


def percent_axis(axes: Axes, values: Iterable[float]) -> None:
    """Fit the y axis to accuracies in percent, with room for whole markers at 0 and at 100."""
    drawn = [value for value in values if value == value]
    low, high = min(drawn, default=0.0), max(drawn, default=100.0)
    room = max(1.0, 0.07 * (high - low))
    low, high = max(-3.5, low - room), min(103.5, high + room)
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.set_yticks([tick for tick in ticks if 0 <= tick <= 100])
    axes.set_ylim(low, high)


def chance_line(axes: Axes, chances: Iterable[float]) -> None:
    """Draw the accuracies of guessing, as shares, as labeled gray lines; NaN if they are not known."""
    for chance in sorted({value for value in chances if value == value}):
        axes.axhline(100 * chance, color=GRAY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5, gid="chance")
        axes.annotate(
            f"chance ({100 * chance:.0f}%)",
            (1, 100 * chance),
            xycoords=("axes fraction", "data"),
            xytext=(-2, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7.5,
            color=GRAY,
        )


def ratio_ticks(axes: Axes) -> None:
    """Write ticks of a log x axis as plain numbers at 1, 2 and 5, or closer where these are fewer than 3."""
    low, high = axes.get_xlim()
    sparse = LogLocator(subs=(1, 2, 5))
    enough = sum(low <= tick <= high for tick in sparse.tick_values(low, high)) > 2
    axes.xaxis.set_major_locator(sparse if enough else LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def prefixed_ticks(axes: Axes) -> None:
    """Write the numbers of the x axis with SI prefixes; on a log axis at 1, 2 and 5 where decades are few."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    if axes.get_xscale() == "log":
        low, high = axes.dataLim.intervalx
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def text_color_on(image: AxesImage, value: float) -> str:
    """Return white or near-black, whichever can be read on the color of a value in an image."""
    red, green, blue, _ = image.to_rgba(numpy.array(value))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#222222"


def note(axes: Axes, text: str) -> None:
    """Write in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GRAY)
    axes.set_axis_off()
