"""Placing text in figures where it covers nothing."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

Point = tuple[float, float]
PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Places of a label relative to its point, in the order in which they are tried."""


@dataclass(frozen=True)
class Label:
    """A text, and the points in data coordinates that it may stand beside, the best one first."""

    text: str
    points: Sequence[Point]
    color: str


def label_where_free(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Bbox]) -> list[Label]:
    """Write each label beside one of its points, where it covers nothing; return those without a place.

    `obstacles` are boxes in pixels. Call `settle` on the figure before. (Of 24 labels, adjustText lets most
    cover points, and textalloc draws most far away.)
    """
    frame, taken, left = axes.get_window_extent().padded(-2), list(obstacles), []
    for label in labels:
        for point, (x, y) in itertools.product(label.points, PLACES):
            written = axes.annotate(
                label.text,
                point,
                xytext=(8 * x, 7 * y),
                textcoords="offset points",
                ha=("right", "center", "left")[x + 1],
                va=("top", "center", "bottom")[y + 1],
                fontsize=8,
                color=label.color,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                parse_math=False,
            )
            box = written.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box.padded(2))
                break
            written.remove()
        else:
            left.append(label)
    return left


def boxes_along(axes: Axes, points: Sequence[Point], around: float = 2.5, every: float = 4.0) -> list[Bbox]:
    """Return boxes of `around` pixels on each side along a line through points in data coordinates."""
    places = axes.transData.transform(points)
    boxes = []
    for start, end in itertools.pairwise(places):
        steps = max(1, int(numpy.hypot(*(end - start)) / every))
        boxes += [box_around(start + (end - start) * step / steps, around) for step in range(steps + 1)]
    return boxes


def box_around(place: numpy.ndarray, around: float) -> Bbox:
    """Return the box of `around` pixels on each side of a place in pixels."""
    x, y = place
    return Bbox.from_extents(x - around, y - around, x + around, y + around)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights between 0 and 1, moved as little as possible to be `gap` apart, in their order.

    The gap shrinks if there is no room. Least squares: after subtracting the gaps below each height, this is
    isotonic regression by pooling adjacent violators (Ayer et al. 1955).
    """
    gap = min(gap, 1 / max(1, len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    pools: list[list[float]] = []
    for place, index in enumerate(order):
        pools.append([heights[index] - gap * place])
        while len(pools) > 1 and fmean(pools[-2]) >= fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    room = 1 - gap * (len(heights) - 1)
    levels = [min(max(fmean(pool), 0), room) for pool in pools for _ in pool]
    placed = {
        index: level + gap * place for place, (index, level) in enumerate(zip(order, levels, strict=True))
    }
    return [placed[index] for index in range(len(heights))]
