"""copra prompt: make a checkpoint that answers by few-shot examples, with the same weights."""

from argparse import ArgumentParser, Namespace
from typing import Literal

from transformers import AutoTokenizer

from copra.commands.common import (
    Coded,
    add_files,
    add_settings,
    folder,
    located,
    made_by,
    rows_of,
    settings_of,
    summary_of,
)
from copra.data.tokenization import markers_of
from copra.methods.few_shot import FewShot
from copra.models.checkpoint import checked_manifest, relabel_checkpoint
from copra.tasks.registry import ALL_TASKS
from copra.utils.files import MANIFEST


class PromptSettings(Coded):
    node: str
    """Name of the model node."""
    prompt: FewShot
    """Settings of the prompt."""
    worked: dict[Literal["task", "sha256"], str] | None = None
    """Kind of the task whose worked examples are shown, and the checksum of their file (null: none)."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_files(parser)
    parser.add_argument("--parent", type=folder, required=True, help="checkpoint to prompt")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=folder, required=True, help="folder to write the checkpoint to")


def run(options: Namespace) -> None:
    settings = settings_of(options, PromptSettings)
    parent = checked_manifest(options.parent)
    latent = markers_of(AutoTokenizer.from_pretrained(options.parent)).latent
    worked = ALL_TASKS[settings.worked["task"]].worked_examples if settings.worked else None
    prompt = located(settings.prompt, options)
    decoding = prompt.decoding(rows_of(options.data, "train"), latent, worked)
    step = {
        "method": settings.prompt.kind,
        "prompt": settings.prompt.canonical(),
        "worked": settings.worked,
        "parent": parent.weights.sha256,
    }
    provenance = parent.after(
        settings.node,
        step,
        method=settings.prompt.kind,
        decoding=decoding,
        budget_missed=parent.budget_missed,
        **made_by(options, options.parent / MANIFEST, summary_of(options.data, "train")),
    )
    relabel_checkpoint(options.parent, options.output, provenance)
