"""CODI: latents learned by self-distillation (Shen et al. 2025, arXiv 2502.21074), also in parallel
(PCCoT, arXiv 2506.18582)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from copra.data.sequences import (
    IGNORED,
    GenerationSpec,
    LatentInput,
    Markers,
    Sample,
    TokenRow,
    Work,
    lay_out,
    parallel_iterations,
)
from copra.methods.method import Layout, Method, Stage
from copra.methods.sim_cot import ExplainedStage, Explaining, check_weighed
from copra.schema.settings import MOST_LATENTS

if TYPE_CHECKING:
    from copra.data.batch import Batch
    from copra.methods.losses import LossTerms
    from copra.methods.reasoning_model import ReasoningModel


class CodiStage(ExplainedStage):
    """The only stage of CODI: student and teacher are the same weights on two sequences."""

    iterations: int | None = None
    """Number of Jacobi iterations over the latents (null: one latent after another)."""
    distillation: float
    """gamma: weight of the self-distillation."""
    drop_last_step: bool
    """If true, the teacher's chain omits its last step."""

    def lay_out(self, row: TokenRow, markers: Markers, draw: Random | None = None) -> Sample:
        """Return the student's and the teacher's sample, both read at the last token before the answer."""
        student = super().lay_out(row, markers, draw)
        steps = row.steps[:-1] if self.drop_last_step else row.steps
        teacher = lay_out(replace(row, steps=steps), 0, 0, None)
        texts = self.explaining.told(steps, student.n_latents, row.answer) if self.explaining else ()
        return replace(
            student,
            read=(_last_of_mark(student, row),),
            teacher=replace(teacher, read=(_last_of_mark(teacher, row),)),
            explained=texts,
        )

    def decoding(self, markers: Markers) -> GenerationSpec:
        return replace(super().decoding(markers), iterations=self.iterations)

    def loss_weights(self) -> dict[str, float]:
        return super().loss_weights() | {"teacher_cross_entropy": 1.0, "self_distillation": self.distillation}

    def normalizers(self, samples: Sequence[Sample]) -> dict[str, float]:
        teachers = [label for sample in samples for label in sample.teacher.labels]
        return super().normalizers(samples) | {
            "teacher_cross_entropy": sum(label != IGNORED for label in teachers),
            "self_distillation": len(samples),
        }

    @property
    def jacobi_iterations(self) -> int:
        return parallel_iterations(self.iterations, self.layouts[-1].latents)

    def flop_workload(self, sample: Sample) -> Iterator[Work]:
        yield from super().flop_workload(sample)
        yield from super().flop_workload(sample.teacher)

    def loss(self, reasoner: "ReasoningModel", batch: "Batch") -> "LossTerms":
        """Return the cross-entropy of both (equations 2, 4) and the distance of their states (equation 5)."""
        from copra.methods.losses import cross_entropy

        hidden, student = _read(reasoner, batch, lambda: self.hidden_states(reasoner, batch))
        chain, teacher = _read(
            reasoner, batch.teacher, lambda: reasoner.hidden_states(batch.teacher, "embedding")
        )
        distance = sum(map(_distance, student, teacher)) / len(student)
        return self.answer_terms(reasoner, batch, hidden) | {
            "teacher_cross_entropy": cross_entropy(reasoner.model, batch.teacher, chain),
            "self_distillation": (distance * len(batch), len(batch)),
        }


def _last_of_mark(sample: Sample, row: TokenRow) -> int:
    """Return the position of the last token of `### `, from which the answer itself is predicted."""
    return len(sample.tokens) - len(row.answer) + row.mark - 1


def _read(reasoner: "ReasoningModel", batch: "Batch", run: Any) -> tuple[Any, list[Any]]:
    """Return the hidden states [B, N, d] that `run` computes, and the states [B, d] of every layer at
    `batch.read`: the input of each block, and the final one."""
    from copra.models.hooks import before_blocks, gather_positions

    inputs: dict[int, Any] = {}
    with before_blocks(reasoner.model, inputs.__setitem__):
        hidden = run()
    # With latents there are several passes; the positions of `batch.read` are in the last one.
    column, width = batch.read[:, 0], hidden.shape[1]
    states = [
        gather_positions(state, column - (width - state.shape[1])) for _, state in sorted(inputs.items())
    ]
    return hidden, [*states, gather_positions(hidden, column)]


def _distance(student: Any, teacher: Any) -> Any:
    """Return the smooth L1 distance in units of the detached teacher's standard deviation.

    The deviation is that of the rows given, so with `micro_batch_size` it is a micro-batch's.
    """
    from torch.nn import functional

    teacher = teacher.detach().float()
    return functional.smooth_l1_loss(student.float(), teacher) / teacher.std()


class Codi(Method):
    """Train to answer after n latents, distilling the model's own chain of thought into them.

    The same weights are trained for two tasks at once: as a teacher to write the chain of thought, and as a
    student to answer after latents, each of which is a projection of the hidden state before it. At the
    token before the answer, the loss pulls the student's states towards the teacher's in every layer.
    """

    stage_type: ClassVar[type[Stage]] = CodiStage

    kind: Literal["codi"]
    """Name of the method."""
    latents: int = Field(6, ge=1, le=MOST_LATENTS)
    """n: number of latents between the markers."""
    latent_input: LatentInput = "projected"
    """Conversion of a hidden state to an input embedding: raw, scaled or projected (the paper: projected)."""
    distillation: float = Field(1.0, ge=0)
    """gamma: weight of the self-distillation (GPT-2: 1, Llama 3.2 1B: 20)."""
    drop_last_step: bool = True
    """If true, the teacher's chain omits its last step, which contains the answer: the teacher would merely
    copy it."""
    iterations: int | None = Field(None, ge=0, le=MOST_LATENTS)
    """T: number of Jacobi iterations, each of which feeds all latents at once (PCCoT). n iterations equal the
    sequential chain; 0 makes the latents pause tokens (null: the sequential chain)."""
    explaining: Explaining | None = None
    """Auxiliary decoder that is trained to predict step k from latent k (SIM-CoT; null: none)."""

    @model_validator(mode="after")
    def _explains_latents(self) -> "Codi":
        check_weighed(self.explaining, self.distil)
        if self.explaining is not None and self.iterations == 0:
            raise ValueError(
                "explaining: pause tokens (iterations: 0) hold no thought that could be explained"
            )
        return self

    def stages(self) -> dict[int, Stage]:
        pause = self.iterations == 0
        stage = CodiStage(
            layouts=(Layout(skip=None, latents=self.latents, markers=True),),
            thought="embedding" if pause else "hidden",
            latent_input="raw" if pause else self.latent_input,
            iterations=None if pause else self.iterations,
            distillation=self.distillation,
            drop_last_step=self.drop_last_step,
            explaining=self.explaining,
        )
        return {0: stage}
