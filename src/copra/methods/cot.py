"""Chain of thought: the question, the steps in words, the answer (2412.06769, section 4.2)."""

from typing import ClassVar, Literal

from copra.methods.method import Layout, Method, Stage


class Cot(Method):
    """Train to write the steps and the answer. Every latent curriculum also starts with this method."""

    writes_steps: ClassVar[bool] = True

    kind: Literal["cot"]
    """Name of the method."""

    def stages(self) -> dict[int, Stage]:
        return {0: Stage(layouts=(Layout(skip=0),))}
