"""The models and rows that a training stage starts from."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import ModuleDict

from copra.commands.common import rows_of
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.methods.method import Stage
from copra.models.bases import start_markers
from copra.models.checkpoint import Checkpoint, load_checkpoint, load_unquantized
from copra.models.extra_modules import make_extra_modules
from copra.models.looping import loop_layers
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.files import file_sha256


@dataclass(frozen=True)
class Inputs:
    """A stage with its student (`parent`), teacher, extra modules and rows.

    `pretrained` names the checkpoint that initialized the step decoder; `checksums` are those of the rows.
    """

    stage: Stage
    decoding: GenerationSpec | None
    parent: Checkpoint
    teacher: Checkpoint | None
    extra_modules: ModuleDict
    pretrained: dict[str, str] | None
    train_rows: list[Row]
    valid_rows: list[Row]
    checksums: list[str]

    @property
    def readers(self) -> list[Checkpoint]:
        return [self.parent] if self.teacher is None else [self.parent, self.teacher]


def read_inputs(
    options: Namespace, parent: Checkpoint, stage: Stage, validation_rows: int | None, seed: int
) -> Inputs:
    """Return the inputs of a stage that trains `parent`; `seed` draws the weights of new modules.

    The model of `parent` is looped as the stage says.

    Raises:
        CopraError: the teacher or the pretrained checkpoint is missing or does not fit, or the model does not
            have the layers of the loop.
    """
    decoding = stage.decoding(markers_of(parent.tokenizer))
    teacher = _teacher(options.teacher, parent, stage) if stage.needs_teacher else None
    rows = rows_of(options.data, "train"), rows_of(options.data, "valid", validation_rows)
    # A teacher that was never trained with markers gets the same embedding rows for them as its student.
    if decoding is not None and decoding.reads_markers:
        for reader in (parent, teacher):
            if reader is not None and not reader.manifest.trained_markers:
                start_markers(reader.model, reader.tokenizer)
    torch.manual_seed(seed)
    extra_modules = make_extra_modules(parent.model, stage.extra_modules(), parent.extra_modules)
    pretrained = (
        _copy_pretrained(options.pretrained, parent, extra_modules["step_decoder"])
        if options.pretrained
        else None
    )
    loop_layers(parent.model, stage.loop)
    checksums = [file_sha256(options.data / f"{split}.parquet") for split in ("train", "valid")]
    return Inputs(stage, decoding, parent, teacher, extra_modules, pretrained, *rows, checksums)


def _teacher(folder: Path | None, student: Checkpoint, stage: Stage) -> Checkpoint:
    """Return the checked checkpoint of the teacher.

    Raises:
        CopraError: no teacher is given, or its shape, vocabulary or projection does not fit the student.
    """
    if folder is None:
        raise CopraError("--teacher: this method learns from a teacher; name its checkpoint.")
    teacher = load_checkpoint(folder)
    if stage.reads_minds and teacher.shape != student.shape:
        raise CopraError(
            f"{folder}: the teacher must have the shape of the student, layer by layer, since states are "
            f"handed over between them. Teacher: {teacher.shape.to_json()}. Student: "
            f"{student.shape.to_json()}. Let the pruned model teach: put its chain-of-thought training after "
            "the pruning, and leave 'teacher' out."
        )
    known, own = ((each.shape.vocabulary, each.tokenizer.get_vocab()) for each in (teacher, student))
    if known != own:
        differ = (
            "the same number of tokens, but others"
            if known[0] == own[0]
            else f"{known[0]} and {own[0]} tokens"
        )
        raise CopraError(
            f"{folder}: the teacher must have the student's vocabulary, since it reads the same tokens and "
            f"its predictions are compared token by token. They have {differ}. Name a teacher of the same "
            "family."
        )
    if "projection" in stage.extra_modules() and "projection" not in teacher.extra_modules:
        raise CopraError(
            f"{folder}: the stage feeds latents through a projection, which the teacher does not have. Name "
            "a teacher that was trained with latent_input: projected."
        )
    return teacher


def _copy_pretrained(folder: Path, student: Checkpoint, decoder: Any) -> dict[str, str]:
    """Initialize a step decoder with the weights of a checkpoint; return the name and checksum of the latter.

    Raises:
        CopraError: the checkpoint has another shape than the student.
    """
    pretrained = load_unquantized(folder)
    if pretrained.shape != student.shape:
        raise CopraError(
            f"--pretrained: {folder} must have the shape of the model that is trained. Name the model of its "
            "recipe that no training precedes, or the last one that was pruned."
        )
    decoder.start_from(pretrained.model)
    return {"node": pretrained.manifest.node, "sha256": pretrained.manifest.weights.sha256}
