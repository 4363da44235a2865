"""iCoT-KD: implicit chain of thought by knowledge distillation (Deng et al. 2023, arXiv 2311.01460)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from copra.data.sequences import IGNORED, GenerationSpec, Markers, Sample, TokenRow, Work
from copra.methods.losses import CrossEntropy, LossTerm, Outputs, TermValue
from copra.methods.method import Layout, Method, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from copra.data.batch import Batch
    from copra.methods.reasoning_model import ReasoningModel

READING, EMULATING, COUPLED = range(3)


class KdStage(Stage):
    """One of three trainings: the mind-reading student, the thought emulator, or both coupled."""

    layouts: tuple[Layout, ...] = (Layout(skip=None),)
    training: Literal[0, 1, 2]
    """Index of the training: 0 mind-reading student, 1 thought emulator, 2 both coupled."""

    dropout: ClassVar[bool] = False
    reads_minds: ClassVar[bool] = True

    @property
    def needs_teacher(self) -> bool:
        return self.training != COUPLED

    @property
    def answers(self) -> bool:
        """False for the student alone: it reads its teacher's states, and answering has no teacher."""
        return self.training != READING

    def lay_out(self, row: TokenRow, markers: Markers, rng: Random | None = None) -> Sample:
        """Return question and answer for the student, question and chain for the teacher.

        The student is read at the end of its question, the teacher there and at the end of its chain.
        """
        sample = super().lay_out(row, markers, rng)
        first = len(row.question) - 1
        chain = [token for step in row.steps for token in step]
        tokens = row.question + chain
        teacher = Sample(row.id, tokens, [IGNORED] * len(tokens), len(tokens), 0, (first, len(tokens) - 1))
        return replace(sample, read=(first,), teacher=teacher if self.needs_teacher else None)

    def decoding(self, markers: Markers) -> GenerationSpec | None:
        spec = super().decoding(markers)
        return replace(spec, emulated=True) if spec is not None and self.answers else None

    def extra_modules(self) -> dict[str, dict[str, Any]]:
        """Return both modules in all trainings: training 0 creates the emulator from its initial model."""
        return {"mind_reader": {}, "emulator": {}}

    def frozen(self) -> tuple[str, ...]:
        return {READING: ("emulator",), EMULATING: ("model", "mind_reader"), COUPLED: ()}[self.training]

    def own_terms(self) -> list[LossTerm]:
        return [Emulation()] if self.training == EMULATING else [CrossEntropy()]

    def pass_workload(self, sample: Sample) -> Iterator[Work]:
        if self.training != EMULATING:
            yield from self.sequence_workload(sample)
            yield Work("mind_reader", 1)
        if self.training != READING:
            yield Work("emulator", sample.read[0] + 1)
            yield Work("emulation", 1)
        if sample.teacher is not None:
            yield Work("teacher", len(sample.teacher.tokens))

    def forward(self, reasoner: "ReasoningModel", batch: "Batch") -> Outputs:
        """Return the student's hidden states, or the teacher's and the emulator's states [L, B, d].

        See sections 3.1 to 3.3.
        """
        if self.training == READING:
            assert batch.teacher is not None
            return {"hidden": _student(reasoner, batch, teacher_states(reasoner, batch.teacher))}
        predicted = _emulate(reasoner, batch)
        if self.training == COUPLED:
            return {"hidden": _student(reasoner, batch, predicted)}
        assert batch.teacher is not None
        return {"predicted": predicted, "taught": teacher_states(reasoner, batch.teacher)}


@dataclass(frozen=True)
class Emulation(LossTerm):
    """Half the squared error of the emulator's predictions (section 3.2)."""

    name: str = "emulation"
    weight: float = 1.0

    def normalizer(self, samples: Sequence[Sample]) -> float:
        return len(samples)

    def compute(self, reasoner: "ReasoningModel", batch: "Batch", outputs: Outputs) -> TermValue:
        error = outputs["predicted"] - outputs["taught"]
        return 0.5 * error.float().square().sum(), len(batch)


def teacher_states(reasoner: "ReasoningModel", batch: "Batch") -> "Tensor":
    """Return the teacher's states z [L, B, d] (section 3.1).

    For layer l it is the normalized input of block l at the l-th of L positions that are spread evenly over
    the chain of each row.
    """
    import torch
    from torch.nn import functional

    from copra.models.anatomy import blocks
    from copra.models.hooks import before_blocks, gather_positions

    assert reasoner.teacher is not None
    model = reasoner.teacher.model
    layers = len(blocks(model))
    first, last = batch.read[:, 0], batch.read[:, 1]
    found: list[Tensor] = []

    def read(index: int, hidden: "Tensor") -> None:
        share = index / max(layers - 1, 1)
        column = torch.minimum((first + share * (last - first)).round().long(), last)
        found.append(functional.layer_norm(gather_positions(hidden, column), hidden.shape[-1:]))

    with torch.no_grad(), before_blocks(model, read):
        model.base_model(
            input_ids=batch.tokens,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        )
    return torch.stack(found)


def _emulate(reasoner: "ReasoningModel", batch: "Batch") -> "Tensor":
    """Return f [L, B, d], the emulator's predictions. It reads only the question."""
    column = batch.read[:, 0]
    stop = int(column.max()) + 1
    return reasoner.extra_modules["emulator"](
        batch.tokens[:, :stop], batch.mask[:, :stop], batch.positions[:, :stop], column
    )


def _student(reasoner: "ReasoningModel", batch: "Batch", states: "Tensor") -> "Tensor":
    """Return hidden states [B, N, d] of the student.

    Its block inputs are replaced by the mind reader's output for the states [L, B, d].
    """
    from copra.models.hooks import before_blocks, scatter_positions

    thoughts, column = reasoner.extra_modules["mind_reader"](states), batch.read[:, 0]
    with before_blocks(
        reasoner.model, lambda index, hidden: scatter_positions(hidden, column, thoughts[index])
    ):
        return reasoner.hidden_states(batch, "embedding")


class IcotKd(Method):
    """Replace the chain by hidden states of a teacher that writes the chain, in three trainings.

    0: a student is trained to answer while it reads, in each layer, a state of the teacher. 1: an emulator is
    trained to predict those states from the question alone. 2: both are trained together and answer without
    a teacher.
    """

    stage_type: ClassVar[type[Stage]] = KdStage
    unprunable: ClassVar[str | None] = "whose parts belong to single layers"
    distils: ClassVar[bool] = False

    kind: Literal["icot_kd"]
    """Name of the method."""
    teacher: str | None = None
    """Name of the recipe whose model is the teacher, one trained with chain of thought, such as `llama+cot`
    (null: the model that the step starts from). It must have the student's shape."""

    def stages(self) -> dict[int, Stage]:
        return {number: KdStage(training=number) for number in (READING, EMULATING, COUPLED)}
