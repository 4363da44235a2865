"""copra train: run one training stage, from a checkpoint to a checkpoint."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from copra.commands.common import (
    Coded,
    add_settings,
    folder,
    made_by,
    settings_of,
    summary_of,
)
from copra.commands.resources import add_processes, add_threads
from copra.commands.torch_setup import set_up_torch
from copra.commands.train_inputs import Inputs, read_inputs
from copra.cost.flops import of_training_work
from copra.data.tokenization import markers_of, pad_id, tokenize
from copra.evaluation.accuracy import share_correct
from copra.methods.reasoning_model import ReasoningModel
from copra.methods.registry import stage_of_kind
from copra.models.checkpoint import (
    load_unquantized,
    save_checkpoint,
    usable_precision,
)
from copra.models.manifest import Provenance
from copra.schema.settings import Precision
from copra.schema.training import Training
from copra.tasks.answers import AnswerKind
from copra.tasks.prepare import data_record
from copra.training.loop import LOG, Trainer
from copra.training.saves import CheckpointSchedule
from copra.training.tracking import KINDS, Tracker
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, digest
from copra.utils.locking import hold


class TrainSettings(Coded):
    node: str
    """Name of the model node."""
    method: str
    """Name of the reasoning method."""
    stage: dict[str, Any]
    """Resolved stage of the method."""
    training: Training
    """Settings of the optimization."""
    precision: Precision = "float32"
    """Precision of the computation, if the device supports it; bfloat16: autocast."""
    seed: int
    """Seed of the order of the data, mixed layouts and dropout."""
    max_new_tokens: int = 256
    """Maximum number of generated tokens per answer, if accuracy selects the checkpoint."""
    answers: AnswerKind = "number"
    """Comparison of answers: as numbers or as texts."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    add_processes(parser)
    parser.add_argument(
        "--sharding",
        choices=("none", "full"),
        default="none",
        help="none: each process holds the whole model; full: a part of weights, gradients and moments",
    )
    parser.add_argument("--parent", type=folder, required=True, help="checkpoint to start from")
    parser.add_argument(
        "--teacher", type=folder, nargs="?", help="checkpoint of the teacher, if the stage needs one"
    )
    parser.add_argument(
        "--pretrained",
        type=folder,
        nargs="?",
        help="checkpoint whose weights initialize an extra module, if the stage needs one",
    )
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument(
        "--state", type=Path, required=True, help="folder for saved states of unfinished stages"
    )
    parser.add_argument("--save-every", type=float, default=300, help="seconds between two saved states")
    parser.add_argument(
        "--save-steps", type=int, default=0, help="also steps between two saved states (0: off)"
    )
    parser.add_argument(
        "--tracking",
        choices=KINDS,
        nargs="?",
        help="experiment tracker for the training metrics (default: none)",
    )
    parser.add_argument(
        "--tracking-folder",
        type=Path,
        default=Path("tracking"),
        help="folder of the tracker's files (default: tracking)",
    )
    parser.add_argument("--output", type=folder, required=True, help="folder to write the checkpoint to")


def run(options: Namespace) -> None:
    settings = settings_of(options, TrainSettings)
    set_up_torch(options, settings.precision)
    tracker = Tracker(options.tracking, options.tracking_folder / settings.node, settings.node)
    parent = load_unquantized(options.parent)
    # Read before the training, since manifests may change during it.
    models = (options.parent, options.teacher, options.pretrained)
    made_of = [model / MANIFEST for model in models if model]
    made_of += [summary_of(options.data, split) for split in ("train", "valid")]
    origin = made_by(options, *made_of)
    stage = stage_of_kind(settings.method, settings.stage)
    inputs = read_inputs(options, parent, stage, settings.training.validation_rows, settings.seed)
    trainer = _trainer(settings, inputs, options, tracker)
    _check_length(min(each.model.config.max_position_embeddings for each in inputs.readers), trainer)
    # All processes must have joined before `hold` exchanges data between them.
    trainer.accelerator.wait_for_everyone()
    with hold(trainer.state, settings.node, options.output / MANIFEST) as made:
        if made:
            return
        record = trainer.run()
        tracker.finish()
        if processes.rank():
            return
        done = _done(settings, inputs, record, options.data)
        provenance = _provenance(settings, inputs, done, origin)
        log, modules = {LOG: trainer.log_text()}, stage.extra_modules()
        save_checkpoint(
            options.output, parent.model, parent.tokenizer, provenance, log, inputs.extra_modules, modules
        )
        trainer.delete_state()


def _trainer(settings: TrainSettings, inputs: Inputs, options: Namespace, tracker: Tracker) -> Trainer:
    """Return the training of a stage. Its state is kept for exactly these settings, models and data."""
    parent, teacher = inputs.parent, inputs.teacher
    key = {
        "settings": settings.canonical(),
        "parent": parent.files,
        "teacher": teacher and teacher.files,
        "pretrained": inputs.pretrained,
        "data": inputs.checksums,
    }

    def accuracy() -> float:
        student = replace(parent, extra_modules=inputs.extra_modules)
        rows, longest = inputs.valid_rows, settings.max_new_tokens
        assert inputs.decoding is not None, "only models that answer are selected by accuracy"
        return share_correct(student, inputs.decoding, rows, longest, settings.answers)

    return Trainer(
        model=parent.model,
        stage=inputs.stage,
        training=settings.training,
        rows=tokenize(parent.tokenizer, inputs.train_rows),
        validation=tokenize(parent.tokenizer, inputs.valid_rows),
        markers=markers_of(parent.tokenizer),
        pad=pad_id(parent.tokenizer),
        seed=settings.seed,
        state=options.state / digest(key)[:16],
        accuracy=accuracy,
        extra_modules=inputs.extra_modules,
        teacher=None if teacher is None else ReasoningModel(teacher.model, teacher.extra_modules),
        precision=usable_precision(settings.precision),
        saves=CheckpointSchedule(options.save_every, options.save_steps or None),
        sharding=options.sharding == "full",
        node=settings.node,
        tracker=tracker,
    )


def _done(settings: TrainSettings, inputs: Inputs, record: dict[str, Any], data: Path) -> dict[str, Any]:
    """Return the lineage entry of a finished training: its record with the FLOPs, and its inputs."""
    parent, teacher = inputs.parent, inputs.teacher
    layers = inputs.stage.extra_modules().get("step_decoder", {}).get("layers", 0)
    lora = settings.training.lora_rank
    taught_by = None if teacher is None else teacher.shape
    flops = of_training_work(parent.shape, record["work"], layers, taught_by, lora)
    dropped = data_record(data / "train.parquet").get("dropped", [])
    return {
        "record": {**record, "flops": flops},
        "data": {"sha256": inputs.checksums, "dropped": dropped},
        "parent": parent.manifest.weights.sha256,
        "teacher": teacher and {"node": teacher.manifest.node, "sha256": teacher.manifest.weights.sha256},
        "pretrained": inputs.pretrained,
    }


def _provenance(
    settings: TrainSettings, inputs: Inputs, done: dict[str, Any], origin: dict[str, Any]
) -> Provenance:
    """Return the provenance after a stage; `done` completes its entry in the lineage."""
    parent, decoding = inputs.parent.manifest, inputs.decoding
    step = {
        "method": settings.method,
        "stage": settings.stage,
        "training": settings.training.canonical(),
        "seed": settings.seed,
    }
    return parent.after(
        settings.node,
        step | done,
        seed=settings.seed,
        method=settings.method,
        decoding=decoding,
        training_flops=parent.training_flops + done["record"]["flops"],
        trained_markers=parent.trained_markers or (decoding is not None and decoding.reads_markers),
        **origin,
    )


def _check_length(context: int, trainer: Trainer) -> None:
    """Refuse sequences that are longer than the model's context of `context` positions."""
    if trainer.training.max_tokens > context:
        samples = [*trainer.samples.first, *trainer.samples.validation]
        longest = max((sample.length, sample.id) for sample in samples)
        if longest[0] > context:
            raise CopraError(
                f"row {longest[1]} has {longest[0]} tokens, but the model has {context} positions: set "
                f"training.max_tokens to {context} or less to leave such rows out, or give the base "
                "more context."
            )
