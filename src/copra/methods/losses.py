"""The named terms of a loss. The loss of a stage is the sum of weight * sum / normalizer over its terms."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from copra.data.sequences import IGNORED, Sample, Work

if TYPE_CHECKING:
    from torch import Tensor

    from copra.data.batch import Batch
    from copra.methods.method import Stage
    from copra.methods.reasoning_model import ReasoningModel

TermValue = tuple["Tensor", "Tensor | int"]
"""The value of a term on a batch: a sum and the number of summands."""
LossValues = dict[str, TermValue]
"""The values of the terms on a batch by name."""

Outputs = dict[str, Any]
"""The outputs of a stage's passes over a batch, shared by its terms. `hidden` [B, N, d] are the final-norm
hidden states, `logits` [S, V] those at the supervised positions (only if a teacher's are compared with
them)."""


@dataclass(frozen=True)
class LossTerm(ABC):
    """A term of a loss; with weight 0 it is only logged."""

    name: str
    weight: float

    @abstractmethod
    def normalizer(self, samples: Sequence[Sample]) -> float:
        """Return the divisor of the term's sum over all samples of an optimizer step."""

    @abstractmethod
    def compute(self, reasoner: "ReasoningModel", batch: "Batch", outputs: Outputs) -> TermValue:
        """Return the sum over a batch and the number of summands, from the outputs of the stage's passes."""

    def flop_workload(self, samples: Sequence[Sample]) -> Iterator[Work]:
        """Yield the work that the term needs in addition to the stage's own passes."""
        yield from ()


@dataclass(frozen=True)
class CrossEntropy(LossTerm):
    """Next-token cross-entropy at the labels."""

    name: str = "cross_entropy"
    weight: float = 1.0

    def normalizer(self, samples: Sequence[Sample]) -> float:
        return n_supervised(samples)

    def compute(self, reasoner: "ReasoningModel", batch: "Batch", outputs: Outputs) -> TermValue:
        from copra.methods.loss_functions import cross_entropy, label_loss

        if (logits := outputs.get("logits")) is None:
            return cross_entropy(reasoner.model, batch, outputs["hidden"])
        return label_loss(batch, logits if self.weight else logits.detach())


TEACHER_READERS = {"model": "teacher", "projection": "teacher_projection"}
"""The teacher's reader that corresponds to each of the student's readers (`Work.reader`)."""


@dataclass(frozen=True)
class TeacherDivergence(LossTerm):
    """T^2 KL(teacher || student) at the positions before labels (Hinton et al. 2015, arXiv 1503.02531).

    The frozen teacher reads the student's sequences and computes its own latents.
    """

    name: str
    weight: float
    temperature: float
    stage: "Stage"

    def normalizer(self, samples: Sequence[Sample]) -> float:
        return n_supervised(samples)

    def flop_workload(self, samples: Sequence[Sample]) -> Iterator[Work]:
        for sample in samples:
            read = self.stage.sequence_workload(sample)
            yield from (replace(work, reader=TEACHER_READERS[work.reader]) for work in read)

    def compute(self, reasoner: "ReasoningModel", batch: "Batch", outputs: Outputs) -> TermValue:
        import torch

        from copra.methods.loss_functions import divergence, supervised_logits

        assert reasoner.teacher is not None
        with torch.no_grad():
            hidden = self.stage.hidden_states(reasoner.teacher, batch)
            teacher = supervised_logits(reasoner.teacher.model, batch, hidden)
        return divergence(outputs["logits"], teacher, self.temperature), len(teacher)


def n_supervised(samples: Sequence[Sample]) -> int:
    """Return the number of labels of all samples."""
    return sum(label != IGNORED for sample in samples for label in sample.labels)
