"""Functions that several commands share: settings from the shell line, threads, and reading of inputs."""

import json
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ValidationError

from copra.schema.settings import Precision, Settings
from copra.schema.shape import ModelShape
from copra.utils import processes
from copra.utils.digests import address_of
from copra.utils.errors import CopraError
from copra.utils.files import MADE_BY, MANIFEST, file_sha256, read_sealed_json
from copra.utils.gpu import MOST_JOBS, jobs_beside, take_gpus

if TYPE_CHECKING:
    from copra.tasks.task import Row

S = TypeVar("S", bound=Settings)


class Coded(Settings):
    """Settings of a rule. `code` is the fingerprint of its code, which serves only to invalidate results."""

    code: str | None = None


class Answering(Coded):
    """Settings of a rule that answers the questions of a split and compares the answers."""

    node: str
    """Name of the model node."""
    split: Literal["valid", "test"] = "test"
    """Split whose questions are answered."""
    limit: int | None = None
    """Number of questions, from the start of the split (null: all)."""
    max_new_tokens: int = 256
    """Maximum number of generated tokens per answer."""
    batch_size: int = 128
    """Number of questions decoded together."""
    answers: Literal["number", "text"] = "number"
    """Comparison of answers: as numbers or as texts."""
    precision: Precision = "float32"
    """Precision of the computation, if the device supports it."""


def add_settings(parser: ArgumentParser) -> None:
    """Add --settings, the single value that a rule passes."""
    parser.add_argument("--settings", required=True, help="settings of the command as JSON, or @FILE")


def add_files(parser: ArgumentParser) -> None:
    """Add --files, the paths of the local files that settings identify by their content."""
    parser.add_argument(
        "--files",
        default="{}",
        help="paths of the local files that settings identify by their content, as JSON",
    )


def located(settings: S, options: Namespace) -> S:
    """Return settings with the content addresses of local files and folders replaced by their paths.

    Raises:
        CopraError: the content has changed since the run was planned.
    """
    text = settings.model_dump_json()
    for address, place in json.loads(options.files).items():
        if address_of(Path(place)) != address:
            raise CopraError(f"{place}: has changed since the run was planned. Run snakemake again.")
        text = text.replace(json.dumps(address), json.dumps(place))
    return type(settings).model_validate_json(text)


def add_threads(parser: ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    parser.add_argument(
        "--jobs-per-gpu",
        type=int,
        choices=range(1, MOST_JOBS + 1),
        default=1,
        help="number of jobs that share a GPU, each with an equal share of its memory (default: 1)",
    )


def add_processes(parser: ArgumentParser) -> None:
    """Add --processes, for a command whose work can be distributed; `copra.cli` then starts that many."""
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of processes that share the work and the threads, with one GPU each if there are any "
        "(default: 1)",
    )


def folder(text: str) -> Path:
    """Return a folder, given directly or by a file in it, since a rule passes the file that it depends on."""
    path = Path(text)
    return path.parent if path.suffix in (".json", ".parquet") else path


def settings_of(arguments: Namespace, kind: type[S]) -> S:
    """Return the checked settings of --settings.

    Raises:
        CopraError: the value is not JSON or not valid for these settings.
    """
    try:
        return kind.model_validate(_given(arguments))
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        raise CopraError(f"--settings: {error}") from None


def made_by(arguments: Namespace, *files: Path) -> dict[str, Any]:
    """Return the provenance record of a result: the value of --settings, and checksums of its input `files`.

    Weights and rows are represented by small files (manifests, summaries of splits). The record contains no
    path and no time, so that equal runs give equal files.

    Raises:
        CopraError: a file is missing.
    """
    try:
        checksums = sorted({file_sha256(file) for file in files})
    except FileNotFoundError as error:
        raise CopraError(
            f"{error.filename}: no such file. Run the rule that makes it, or snakemake."
        ) from None
    return {MADE_BY: {"settings": _given(arguments), "files": checksums}}


def summary_of(data: Path, split: str) -> Path:
    """Return the path of the small file that represents a split of a prepared task."""
    return data / f"{split}.json"


def _given(arguments: Namespace) -> Any:
    """Return the JSON value of --settings as given, without defaults."""
    text = arguments.settings
    return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)


def use_threads(arguments: Namespace, precision: Precision = "float32") -> None:
    """Set up torch: threads, deterministic algorithms, no broken kernels, and this process's own GPU.

    The GPU is taken before torch is imported.
    """
    together, jobs = processes.world_size(), arguments.jobs_per_gpu
    if together == 1:
        take_gpus(jobs=jobs)
    # Batches of varying widths fragment memory that is allocated in fixed segments.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    import torch

    if torch.cuda.is_available():
        if together > 1:
            torch.cuda.set_device(processes.rank())
        if jobs_beside(jobs) > 1:
            torch.cuda.set_per_process_memory_fraction(1 / jobs_beside(jobs))
    torch.set_num_threads(max(1, arguments.threads // together))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode would also fill all new memory with NaN, an extra write per new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # With a mask, cuDNN's attention returns NaN in the backward pass if the length modulo 128 is 64
    # (pytorch/pytorch#196678) and for single queries, as in the pass of a latent
    # (NVIDIA/cudnn-frontend#1072). Without it, PyTorch selects another kernel.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if precision == "tf32":
        from copra.models.checkpoint import has_tf32

        torch.set_float32_matmul_precision("high" if has_tf32() else "highest")


def recorded_shape(model: Path) -> ModelShape:
    """Return the shape of a checkpoint, from its manifest alone."""
    return ModelShape.from_json(read_sealed_json(model / MANIFEST)["shape"])


def rows_of(data: Path, split: str, limit: int | None = None) -> "list[Row]":
    """Return the rows of a split of a prepared task, or the first `limit` of them."""
    from copra.tasks.prepare import read_rows

    return read_rows(data / f"{split}.parquet")[:limit]
