"""No chain of thought: the question, then the answer (the baseline of 2412.06769, section 4.2)."""

from typing import ClassVar, Literal

from copra.methods.method import Layout, Method, Stage


class NoCot(Method):
    """Train to answer without steps; the loss is on the answer."""

    needs_steps: ClassVar[bool] = False

    kind: Literal["no_cot"]
    """Name of the method."""

    def stages(self) -> dict[int, Stage]:
        return {0: Stage(layouts=(Layout(skip=None),))}
