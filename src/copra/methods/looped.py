"""Looped layers: more computation per position by depth recurrence, the rival of latents.

Looped transformers simulate steps of a chain of thought (2502.17416). Iterating over a range of a pretrained
model's layers is the method of 2510.07358. 2511.07384 also adds an adapter and injects the block's first
input into every pass, which is left out here.
"""

from typing import ClassVar, Literal

from copra.methods.method import Layout, Method, Stage
from copra.schema.loop import Loop


class Looped(Method):
    """Train to answer at once, as `no_cot` does, with a block of layers that is run several times.

    The model answers with the same loop. Its files are those of an ordinary model, and a later training
    starts from the ordinary model unless it loops too.
    """

    unprunable: ClassVar[str | None] = "whose layers are run several times"
    needs_steps: ClassVar[bool] = False

    kind: Literal["looped"]
    """Name of the method."""
    loop: Loop = Loop()
    """The block of layers and the number of passes through it."""

    def stages(self) -> dict[int, Stage]:
        return {0: Stage(layouts=(Layout(skip=None),), loop=self.loop)}
