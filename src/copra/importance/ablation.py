"""What a checkpoint is worth with units gone: loss and accuracy, each measured once and kept on the disk."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from copra.errors import CopraError
from copra.evaluation.accuracy import predictions
from copra.files import digest
from copra.importance.objective import example_losses
from copra.models.checkpoint import Checkpoint, answering_parts
from copra.pruning.cut import Cut
from copra.pruning.proof import masked
from copra.pruning.surgery import cut_model
from copra.reasoning.forward import Batch
from copra.tasks.task import Row

_READ = ("tokens", "mask", "labels", "latent")
"""What of a batch its loss depends on."""


@contextlib.contextmanager
def applied(model: PreTrainedModel, cut: Cut) -> Iterator[PreTrainedModel]:
    """The model without what a cut removes: really cut where that is legal and a model class can hold the
    result, and otherwise the whole model with what goes masked."""
    try:
        left, mask = cut_model(model, cut), contextlib.nullcontext()
    except CopraError:
        left, mask = model, masked(model, cut)
    with mask:
        yield left


@dataclass(frozen=True)
class Questions:
    """What accuracy is measured on, and how."""

    rows: Sequence[Row]
    """The questions with their gold answers."""
    max_new_tokens: int = 256
    """Longest generated text."""
    answers: Literal["number", "text"] = "number"
    """How answers are compared."""
    batch_size: int = 128
    """Questions decoded together."""


class Ablation:
    """Loss and accuracy of a checkpoint with a cut applied.

    The loss is the mean over the examples of `batches` of each example's own mean cross-entropy; accuracy
    is the share of `questions` with a right answer. Every value is appended to a file below `state` as soon
    as it is known, so that whatever asks for it again, after a kill or in another search, reads it there.
    The file's folder is named after all that its values depend on: weights, decoding, what is read, and
    `code`, the fingerprint of the code that measures.
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
        self.checkpoint = replace(checkpoint, parts=answering_parts(checkpoint))
        self.shape = checkpoint.shape
        self.batches = batches
        self.questions = questions
        manifest = checkpoint.manifest
        self.decoding = checkpoint.decoding
        model = {
            "weights": manifest["weights"]["sha256"],
            "parts": (manifest.get("parts") or {}).get("sha256"),
            "decoding": manifest["decoding"],
            "device": [checkpoint.model.device.type, str(checkpoint.model.dtype)],
            "code": code,
        }
        read = [[getattr(batch, name).tolist() for name in _READ] for batch in batches]
        self._losses = Memory(_file(state, "loss", {**model, "batches": read}))
        self._answers = Memory(
            _file(state, "accuracy", {**model, "questions": questions and asdict(questions)})
        )

    def loss(self, cut: Cut) -> float:
        """The mean loss with a cut applied.

        Raises:
            CopraError: it is not finite.
        """
        return self._losses.of(cut, lambda: {"loss": self._loss(cut)})["loss"]

    def answers(self, cut: Cut) -> tuple[int, int]:
        """The number of right answers with a cut applied, and of all.

        Raises:
            CopraError: the model was never trained to answer, or cannot answer with fewer layers.
        """
        known = self._answers.of(cut, lambda: self._answer(cut))
        return known["correct"], known["n"]

    def accuracy(self, cut: Cut) -> float:
        """The share of right answers with a cut applied."""
        correct, n = self.answers(cut)
        return correct / n

    def risk(self, metric: Literal["loss", "accuracy"], cut: Cut) -> float:
        """The loss, or the share of wrong answers: what is to stay low, with a cut applied."""
        return self.loss(cut) if metric == "loss" else 1 - self.accuracy(cut)

    @torch.no_grad()
    def _loss(self, cut: Cut) -> float:
        with applied(self.checkpoint.model, cut) as model:
            losses = [
                example_losses(model, self.checkpoint.parts, batch.to(model.device), self.decoding)
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

    def _answer(self, cut: Cut) -> dict[str, int]:
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


class Memory:
    """Values by cut in a file of JSON lines; a line that a killed process left unfinished is passed over."""

    def __init__(self, file: Path):
        self.file = file
        self.known: dict[str, dict[str, Any]] = {}
        text = file.read_text() if file.is_file() else ""
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(line)
                self.known[value["cut"]] = value
        if text and not text.endswith("\n"):
            self._append("\n")

    def of(self, cut: Cut, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is known about a cut; measured and written down where nothing is."""
        name = digest(cut.to_json())
        if name not in self.known:
            value = {"cut": name, **measure()}
            self._append(json.dumps(value) + "\n")
            self.known[name] = value
        return self.known[name]

    def _append(self, text: str) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise CopraError(
                f"{self.file}: could not be written ({error.strerror}). Free some space or check the "
                "permissions, then run again: what was measured before is kept."
            ) from error


def _file(state: Path, name: str, key: dict[str, Any]) -> Path:
    return state / digest([name, key])[:16] / f"{name}.jsonl"
