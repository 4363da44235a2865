"""Map the output channels of a layer's projections to heads and neurons."""

import torch
from torch import Tensor

from copra.models.families.family import Part, Projection
from copra.schema.shape import LayerShape


def channels_of(projection: Projection, sizes: LayerShape) -> dict[Part, Tensor]:
    """Return the indices of a projection's output channels by kind of unit.

    They are [H, D] for the query heads, [K, D] each for the keys and the values of the KV groups, and [I, m]
    for neurons with m channels each.
    """
    shapes: dict[Part, tuple[int, int]] = {
        "query": (sizes.query_heads, sizes.head_dim),
        "key": (sizes.kv_heads, sizes.head_dim),
        "value": (sizes.kv_heads, sizes.head_dim),
        "neuron": (sizes.ffn, 1),
    }
    if projection.by_head:
        grid = torch.arange(sizes.query_heads * len(projection.makes) * sizes.head_dim)
        by_part = grid.view(sizes.query_heads, len(projection.makes), sizes.head_dim)
        return {part: by_part[:, place] for place, part in enumerate(projection.makes)}
    found: dict[Part, list[Tensor]] = {}
    first = 0
    for part in projection.makes:
        units, width = shapes[part]
        found.setdefault(part, []).append(torch.arange(first, first + units * width).view(units, width))
        first += units * width
    return {part: torch.cat(indices, dim=1) for part, indices in found.items()}
