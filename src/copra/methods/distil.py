"""Healing: distill a frozen teacher's predictions in any stage (Hinton et al. 2015, arXiv 1503.02531)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from copra.data.sequences import Sample, Work
from copra.methods.method import Method, Stage
from copra.schema.training import Distillation

if TYPE_CHECKING:
    from torch import Tensor

    from copra.data.batch import Batch
    from copra.methods.losses import LossTerms
    from copra.methods.reasoning_model import ReasoningModel


TEACHER_READERS = {"model": "teacher", "projection": "teacher_projection"}
"""The teacher's reader that corresponds to each of the student's readers (`Work.reader`)."""


class DistilledStage(Stage):
    """A mixin that adds distillation to a stage. It precedes the stage's own class, see `_distilled`.

    The loss is task_weight * the stage's own + weight * T^2 KL(teacher || student), the latter at the
    positions before labels. With task_weight 0, only the cross-entropy of the labels is computed of the
    stage's own loss, for the log.
    """

    distil: Distillation
    """The weights and the temperature of the loss."""

    @property
    def alone(self) -> bool:
        """True if the loss is the distillation alone."""
        return not self.distil.task_weight

    @property
    def needs_teacher(self) -> bool:
        return True

    def loss_weights(self) -> dict[str, float]:
        own = Stage.loss_weights(self) if self.alone else super().loss_weights()
        scaled = {name: self.distil.task_weight * weight for name, weight in own.items()}
        return scaled | {"distillation": self.distil.weight}

    def normalizers(self, samples: Sequence[Sample]) -> dict[str, float]:
        return super().normalizers(samples) | {
            "distillation": Stage.normalizers(self, samples)["cross_entropy"]
        }

    def flop_workload(self, sample: Sample) -> Iterator[Work]:
        read = list(Stage.flop_workload(self, sample))
        yield from read if self.alone else super().flop_workload(sample)
        yield from (replace(work, reader=TEACHER_READERS[work.reader]) for work in read)

    def loss(self, reasoner: "ReasoningModel", batch: "Batch") -> "LossTerms":
        return Stage.loss(self, reasoner, batch) if self.alone else super().loss(reasoner, batch)

    def label_terms(self, reasoner: "ReasoningModel", batch: "Batch", hidden: "Tensor") -> "LossTerms":
        """Return cross-entropy and divergence from the teacher, which computes its own latents."""
        import torch

        from copra.methods.losses import label_loss, supervised_logits

        logits = supervised_logits(reasoner.model, batch, hidden)
        with torch.no_grad():
            taught = self.hidden_states(reasoner.teacher, batch)
            teacher = supervised_logits(reasoner.teacher.model, batch, taught)
        distance = divergence(logits, teacher, self.distil.temperature)
        # Both terms use the same logits.
        own = label_loss(batch, logits.detach() if self.alone else logits)
        return {"cross_entropy": own, "distillation": (distance, len(logits))}


def divergence(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """Return T^2 KL(teacher || student) of logits [S, V], summed over S.

    The gradients of softened predictions shrink with 1/T^2 (1503.02531, section 2); the factor compensates.
    """
    from torch.nn import functional

    learned, taught = (functional.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * functional.kl_div(learned, taught, reduction="sum", log_target=True)


def stages_of(method: Method) -> dict[int, Stage]:
    """Return the resolved stages of a method by number, with distillation if the method has `distil`."""
    if method.distil is None:
        return dict(method.stages())
    # The teacher belongs to the recipe: stages with equal weights and temperature are the same stage.
    weights = method.distil.model_dump(include=set(Distillation.model_fields))
    return {
        number: _distilled(type(stage)).model_validate({**stage.canonical(), "distil": weights})
        for number, stage in method.stages().items()
    }


def stage_of(method: Method, number: int) -> Stage:
    """Return one resolved stage of a method."""
    return stages_of(method)[number]


def read_stage(kind: type[Stage], settings: Mapping[str, Any]) -> Stage:
    """Return a stage of class `kind`, with distillation if its JSON settings have `distil`."""
    return (_distilled(kind) if "distil" in settings else kind).model_validate(settings)


@cache
def _distilled(kind: type[Stage]) -> type[Stage]:
    """Return the subclass of a stage class that adds distillation."""
    return create_model(f"Distilled{kind.__name__}", __base__=(DistilledStage, kind))
