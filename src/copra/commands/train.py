"""copra train: run one training stage, from a checkpoint to a checkpoint."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from copra.commands.common import (
    Coded,
    add_processes,
    add_settings,
    add_threads,
    folder,
    made_by,
    rows_of,
    settings_of,
    summary_of,
    use_threads,
)
from copra.cost.flops import of_training_work
from copra.methods import METHODS
from copra.methods.method import Stage
from copra.schema.settings import Precision
from copra.schema.training import Training
from copra.tasks.prepare import data_record
from copra.training.tracking import KINDS, Tracker
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, digest, file_sha256
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
    answers: Literal["number", "text"] = "number"
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
    use_threads(options, settings.precision)
    import torch

    from copra.data.tokenization import markers_of, pad_id, tokenize
    from copra.evaluation.accuracy import share_correct
    from copra.methods.reasoning_model import ReasoningModel
    from copra.models.bases import start_markers
    from copra.models.checkpoint import (
        TRAINED_MARKERS,
        has_trained_markers,
        load_unquantized,
        save_checkpoint,
        usable_precision,
    )
    from copra.models.extra_modules import make_extra_modules
    from copra.training.loop import LOG, Trainer
    from copra.training.saves import CheckpointSchedule

    tracker = Tracker(options.tracking, options.tracking_folder / settings.node, settings.node)
    parent = load_unquantized(options.parent)
    # Read before the training, since manifests may change during it.
    models = (options.parent, options.teacher, options.pretrained)
    made_of = [model / MANIFEST for model in models if model]
    made_of += [summary_of(options.data, split) for split in ("train", "valid")]
    origin = made_by(options, *made_of)
    markers = markers_of(parent.tokenizer)
    stage = METHODS[settings.method].stage_type.model_validate(settings.stage)
    teacher = _teacher(options.teacher, parent, stage) if stage.needs_teacher else None
    train_rows = rows_of(options.data, "train")
    valid_rows = rows_of(options.data, "valid", settings.training.validation_rows)
    decoding = stage.decoding(markers)
    # A teacher that was never trained with markers gets the same embedding rows for them as its student.
    readers = [parent] if teacher is None else [parent, teacher]
    for reader in readers:
        if _reads_markers(decoding) and not has_trained_markers(reader.manifest):
            start_markers(reader.model, reader.tokenizer)
    torch.manual_seed(settings.seed)
    extra_modules = make_extra_modules(parent.model, stage.extra_modules(), parent.extra_modules)
    pretrained = (
        _copy_pretrained(options.pretrained, parent, extra_modules["step_decoder"])
        if options.pretrained
        else None
    )
    # A saved state is valid only for exactly these settings, models and data.
    key = {
        "settings": settings.canonical(),
        "parent": parent.files,
        "teacher": teacher and teacher.files,
        "pretrained": pretrained,
        "data": [file_sha256(options.data / f"{split}.parquet") for split in ("train", "valid")],
    }
    trainer = Trainer(
        model=parent.model,
        stage=stage,
        training=settings.training,
        rows=tokenize(parent.tokenizer, train_rows),
        validation=tokenize(parent.tokenizer, valid_rows),
        markers=markers,
        pad=pad_id(parent.tokenizer),
        seed=settings.seed,
        state=options.state / digest(key)[:16],
        accuracy=lambda: share_correct(
            replace(parent, extra_modules=extra_modules),
            decoding,
            valid_rows,
            settings.max_new_tokens,
            settings.answers,
        ),
        extra_modules=extra_modules,
        teacher=teacher and ReasoningModel(teacher.model, teacher.extra_modules),
        precision=usable_precision(settings.precision),
        saves=CheckpointSchedule(options.save_every, options.save_steps or None),
        sharding=options.sharding == "full",
        node=settings.node,
        tracker=tracker,
    )
    _check_length(min(each.model.config.max_position_embeddings for each in readers), trainer)
    # All processes must have joined before `hold` exchanges data between them.
    trainer.accelerator.wait_for_everyone()
    with hold(trainer.state, settings.node, options.output / MANIFEST) as made:
        if made:
            return
        record = trainer.run()
        tracker.finish()
        if processes.rank():
            return
        layers = stage.extra_modules().get("step_decoder", {}).get("layers", 0)
        lora = settings.training.lora_rank
        flops = of_training_work(parent.shape, record["work"], layers, teacher and teacher.shape, lora)
        done = {
            "record": {**record, "flops": flops},
            "data": {
                "sha256": key["data"],
                "dropped": data_record(options.data / "train.parquet").get("dropped", []),
            },
            "parent": parent.manifest["weights"]["sha256"],
            "teacher": teacher
            and {"node": teacher.manifest["node"], "sha256": teacher.manifest["weights"]["sha256"]},
            "pretrained": pretrained,
        }
        save_checkpoint(
            options.output,
            parent.model,
            parent.tokenizer,
            {
                **_manifest(settings, parent.manifest, decoding, done),
                TRAINED_MARKERS: _reads_markers(decoding) or has_trained_markers(parent.manifest),
                **origin,
            },
            {LOG: trainer.log_text()},
            extra_modules,
            stage.extra_modules(),
        )
        trainer.forget()


def _manifest(
    settings: TrainSettings, parent: dict[str, Any], decoding: Any, done: dict[str, Any]
) -> dict[str, Any]:
    """Return the manifest after a stage; `done` holds the record of the training and its inputs."""
    step = {
        "step": settings.node.rsplit("+", 1)[-1],
        "method": settings.method,
        "stage": settings.stage,
        "training": settings.training.canonical(),
        "seed": settings.seed,
    }
    return {
        **{name: parent[name] for name in ("base", "dense_shape", "typical_answer")},
        "node": settings.node,
        "seed": settings.seed,
        "lineage": [*parent["lineage"], step | done],
        "method": settings.method,
        "decoding": decoding and decoding.to_json(),
        "training_flops": parent["training_flops"] + done["record"]["flops"],
    }


def _teacher(folder: Path | None, student: Any, stage: Stage) -> Any:
    """Return the checked checkpoint of the teacher.

    Raises:
        CopraError: no teacher is given, or its shape, vocabulary or projection does not fit the student.
    """
    from copra.models.checkpoint import load_checkpoint

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


def _copy_pretrained(folder: Path, student: Any, decoder: Any) -> dict[str, str]:
    """Initialize a step decoder with the weights of a checkpoint; return the name and checksum of the latter.

    Raises:
        CopraError: the checkpoint has another shape than the student.
    """
    from copra.models.checkpoint import load_unquantized

    pretrained = load_unquantized(folder)
    if pretrained.shape != student.shape:
        raise CopraError(
            f"--pretrained: {folder} must have the shape of the model that is trained. Name the model of its "
            "recipe that no training precedes, or the last one that was pruned."
        )
    decoder.start_from(pretrained.model)
    return {"node": pretrained.manifest["node"], "sha256": pretrained.manifest["weights"]["sha256"]}


def _reads_markers(decoding: Any) -> bool:
    """True if a model with this decoding was trained with the latent markers."""
    return decoding is not None and bool(decoding.prefix_ids or decoding.latents)


def _check_length(context: int, trainer: Any) -> None:
    """Refuse sequences that are longer than the model's context of `context` positions."""
    if trainer.training.max_tokens > context:
        samples = [*trainer.samples(0)[0], *trainer.validation_samples()]
        longest = max((sample.length, sample.id) for sample in samples)
        if longest[0] > context:
            raise CopraError(
                f"row {longest[1]} has {longest[0]} tokens, but the model has {context} positions: set "
                f"training.max_tokens to {context} or less to leave such rows out, or give the base "
                "more context."
            )
