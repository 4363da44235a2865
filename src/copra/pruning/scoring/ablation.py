"""Loss and accuracy of a checkpoint without some units, each measured once and cached on disk."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.evaluation.accuracy import predictions
from copra.models.checkpoint import Checkpoint, answering_modules
from copra.pruning.cut import KeptUnits
from copra.pruning.proof import masked
from copra.pruning.scoring.objective import example_losses
from copra.pruning.surgery import cut_model
from copra.tasks.answers import AnswerKind
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.files import digest
from copra.utils.result_cache import ResultCache

_READ = ("tokens", "mask", "labels", "latent")
"""The fields of a batch that its loss depends on."""


@contextlib.contextmanager
def applied(model: PreTrainedModel, cut: KeptUnits) -> Iterator[PreTrainedModel]:
    """Yield the model after a cut.

    If no model class can hold the result, it is the whole model with the removed units masked.
    """
    mask: contextlib.AbstractContextManager[None]
    try:
        left, mask = cut_model(model, cut), contextlib.nullcontext()
    except CopraError:
        left, mask = model, masked(model, cut)
    with mask:
        yield left


@dataclass(frozen=True)
class Questions:
    """The questions that accuracy is measured on, and the settings of the measurement."""

    rows: Sequence[Row]
    """The questions with their gold answers."""
    max_new_tokens: int = 256
    """Largest number of generated tokens per answer."""
    answers: AnswerKind = "number"
    """Comparison of answers: as numbers or as text."""
    batch_size: int = 128
    """Number of questions decoded together."""


class Ablation:
    """Loss and accuracy of a checkpoint with a cut applied.

    The loss is the mean over the examples of `batches` of each example's own mean cross-entropy; accuracy
    is the share of `questions` with a right answer. Every value is cached below `state` (see `ResultCache`),
    so that a resumed or another search reads it there. The cache key holds the checkpoint, the batches or
    questions, and `code`, the fingerprint of the code that measures.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        state: Path,
        *,
        batches: Sequence[Batch] = (),
        questions: Questions | None = None,
        code: str | None = None,
    ):
        self.checkpoint = replace(checkpoint, extra_modules=answering_modules(checkpoint))
        self.shape = checkpoint.shape
        self.batches = batches
        self.questions = questions
        self.decoding = checkpoint.decoding
        model = {**checkpoint.identity, "code": code}
        read = [[getattr(batch, name).tolist() for name in _READ] for batch in batches]
        self._losses = ResultCache(state, "loss", {**model, "batches": read})
        self._answers = ResultCache(
            state, "accuracy", {**model, "questions": questions and asdict(questions)}
        )

    def loss(self, cut: KeptUnits) -> float:
        """Return the mean loss with a cut applied.

        Raises:
            CopraError: the loss is not finite.
        """
        return self._losses.get_or_compute(_name(cut), lambda: {"loss": self._loss(cut)})["loss"]

    def answers(self, cut: KeptUnits) -> tuple[int, int]:
        """Return the number of right answers with a cut applied, and of all questions.

        Raises:
            CopraError: the model was never trained to answer, or cannot answer with fewer layers.
        """
        known = self._answers.get_or_compute(_name(cut), lambda: self._answer(cut))
        return known["correct"], known["n"]

    def accuracy(self, cut: KeptUnits) -> float:
        """Return the share of right answers with a cut applied."""
        correct, n = self.answers(cut)
        return correct / n

    def risk(self, metric: Literal["loss", "accuracy"], cut: KeptUnits) -> float:
        """Return the loss, or the share of wrong answers, with a cut applied: lower is better."""
        return self.loss(cut) if metric == "loss" else 1 - self.accuracy(cut)

    @torch.no_grad()
    def _loss(self, cut: KeptUnits) -> float:
        with applied(self.checkpoint.model, cut) as model:
            losses = [
                example_losses(model, self.checkpoint.extra_modules, batch.to(model.device), self.decoding)
                for batch in self.batches
            ]
        loss = float(torch.cat(losses).double().mean())
        if not math.isfinite(loss):
            raise CopraError(
                f"loss: it is {loss} with layers {list(cut.layers)} of {len(self.shape.layers)} left, so "
                "candidates cannot be compared. Either a row has nothing that a loss is taken on, or the "
                "model's numbers overflow."
            )
        return loss

    def _answer(self, cut: KeptUnits) -> dict[str, int]:
        if self.decoding is None:
            raise CopraError(
                "accuracy: this model was never trained to answer, so its answers cannot be counted. Score "
                "it by loss, or score a model that was."
            )
        if self.decoding.emulated and len(cut.layers) < len(self.shape.layers):
            raise CopraError(
                "accuracy: this model answers with a thought emulator (iCoT-KD), which has a network for "
                "each of its layers, so no layer can be left out. Score its layers by loss."
            )
        with applied(self.checkpoint.model, cut) as model:
            checkpoint = replace(self.checkpoint, model=model)
            table = predictions(checkpoint, self.decoding, **vars(self.questions))
        return {"correct": int(table["correct"].sum()), "n": len(table)}


def _name(cut: KeptUnits) -> str:
    return digest(cut.to_json())
