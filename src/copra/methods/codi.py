"""CODI: latents learned by self-distillation (Shen et al. 2025, arXiv 2502.21074).

With `iterations` the latents are computed in parallel (PCCoT, arXiv 2506.18582).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from copra.data.sequences import (
    GenerationSpec,
    LatentInput,
    Markers,
    Sample,
    TokenRow,
    Work,
    lay_out,
    parallel_iterations,
)
from copra.methods.losses import LossTerm, Outputs, TermValue, n_supervised
from copra.methods.method import Layout, Method, Stage
from copra.methods.sim_cot import AuxiliaryDecoder, ExplainedStage, check_weighed
from copra.schema.settings import MOST_LATENTS

if TYPE_CHECKING:
    from copra.data.batch import Batch
    from copra.methods.reasoning_model import ReasoningModel


class CodiStage(ExplainedStage):
    """The only stage of CODI: student and teacher are the same weights on two sequences."""

    iterations: int | None = None
    """Number of Jacobi iterations over the latents (null: one latent after another)."""
    distillation: float
    """gamma: weight of the self-distillation."""
    drop_last_step: bool
    """If true, the teacher's chain omits its last step."""

    def lay_out(self, row: TokenRow, markers: Markers, rng: Random | None = None) -> Sample:
        """Return the student's and the teacher's sample, both read at the last token before the answer."""
        student = super().lay_out(row, markers, rng)
        steps = row.steps[:-1] if self.drop_last_step else row.steps
        teacher = lay_out(replace(row, steps=steps), 0, 0, None)
        texts = (
            self.auxiliary_decoder.targets(steps, student.n_latents, row.answer)
            if self.auxiliary_decoder
            else ()
        )
        return replace(
            student,
            read=(_last_of_mark(student, row),),
            teacher=replace(teacher, read=(_last_of_mark(teacher, row),)),
            explained=texts,
        )

    def decoding(self, markers: Markers) -> GenerationSpec:
        spec = super().decoding(markers)
        assert spec is not None
        return replace(spec, iterations=self.iterations)

    @property
    def jacobi_iterations(self) -> int:
        return parallel_iterations(self.iterations, self.layouts[-1].latents)

    def own_terms(self) -> list[LossTerm]:
        return [*super().own_terms(), TeacherCrossEntropy(), SelfDistillation(weight=self.distillation)]

    def pass_workload(self, sample: Sample) -> Iterator[Work]:
        yield from self.sequence_workload(sample)
        assert sample.teacher is not None
        yield from self.sequence_workload(sample.teacher)

    def forward(self, reasoner: "ReasoningModel", batch: "Batch") -> Outputs:
        """Return the outputs of both tasks.

        They are hidden states [B, N, d] of the student and of the teacher (`chain`), and the states of every
        layer at `batch.read`, [B, d] each.
        """
        hidden, student = _read(reasoner, batch, lambda: self.hidden_states(reasoner, batch))
        taught = batch.teacher
        assert taught is not None
        chain, teacher = _read(reasoner, taught, lambda: reasoner.hidden_states(taught, "embedding"))
        return {"hidden": hidden, "states": student, "chain": chain, "teacher_states": teacher}


@dataclass(frozen=True)
class TeacherCrossEntropy(LossTerm):
    """Next-token cross-entropy of the chain of thought (equation 4)."""

    name: str = "teacher_cross_entropy"
    weight: float = 1.0

    def normalizer(self, samples: Sequence[Sample]) -> float:
        return n_supervised([sample.teacher for sample in samples if sample.teacher is not None])

    def compute(self, reasoner: "ReasoningModel", batch: "Batch", outputs: Outputs) -> TermValue:
        from copra.methods.loss_functions import cross_entropy

        assert batch.teacher is not None
        return cross_entropy(reasoner.model, batch.teacher, outputs["chain"])


@dataclass(frozen=True)
class SelfDistillation(LossTerm):
    """The distance of the student's states to the teacher's, a mean over the layers (equation 5)."""

    name: str = "self_distillation"
    weight: float = 1.0

    def normalizer(self, samples: Sequence[Sample]) -> float:
        return len(samples)

    def compute(self, reasoner: "ReasoningModel", batch: "Batch", outputs: Outputs) -> TermValue:
        student, teacher = outputs["states"], outputs["teacher_states"]
        distance = sum(map(_distance, student, teacher)) / len(student)
        return distance * len(batch), len(batch)


def _last_of_mark(sample: Sample, row: TokenRow) -> int:
    """Return the position of the last token of `### `, from which the answer itself is predicted."""
    return len(sample.tokens) - len(row.answer) + row.mark - 1


def _read(reasoner: "ReasoningModel", batch: "Batch", run: Any) -> tuple[Any, list[Any]]:
    """Return the hidden states [B, N, d] that `run` computes, and the states of every layer at `batch.read`.

    The latter are the input of each block, and the final state, [B, d] each.
    """
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
    auxiliary_decoder: AuxiliaryDecoder | None = None
    """Auxiliary decoder that is trained to predict step k from latent k (SIM-CoT; null: none)."""

    @model_validator(mode="after")
    def _explains_latents(self) -> "Codi":
        check_weighed(self.auxiliary_decoder, self.distil)
        if self.auxiliary_decoder is not None and self.iterations == 0:
            raise ValueError(
                "auxiliary_decoder: pause tokens (iterations: 0) hold no thought that could be explained"
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
            auxiliary_decoder=self.auxiliary_decoder,
        )
        return {0: stage}
