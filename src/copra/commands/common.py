"""What several verbs share: their settings from the shell line, threads, and reading inputs."""

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
    """Settings of a rule. `code` is the fingerprint of the code behind it: it invalidates, nothing more."""

    code: str | None = None


class Answering(Coded):
    """Settings of a rule that answers the questions of a split and compares the answers."""

    node: str
    """The node's name."""
    split: Literal["valid", "test"] = "test"
    """Which questions."""
    limit: int | None = None
    """Only the first so many."""
    max_new_tokens: int = 256
    """Longest generated text."""
    batch_size: int = 128
    """Questions decoded together."""
    answers: Literal["number", "text"] = "number"
    """How answers are compared."""
    precision: Precision = "float32"
    """The precision to compute in, where the device has it."""


def add_settings(parser: ArgumentParser) -> None:
    """The one value that a rule passes."""
    parser.add_argument("--settings", required=True, help="the stage's settings as JSON, or @FILE with them")


def add_files(parser: ArgumentParser) -> None:
    """Where the local files are that settings name by their content."""
    parser.add_argument(
        "--files",
        default="{}",
        help="where the local files are that settings name by their content (JSON)",
    )


def located(settings: S, options: Namespace) -> S:
    """Settings with the places of local files and folders in place of their contents' addresses.

    Raises:
        CopraError: a content is no longer what it was when the run was planned.
    """
    text = settings.model_dump_json()
    for address, place in json.loads(options.files).items():
        if address_of(Path(place)) != address:
            raise CopraError(f"{place}: has changed since the run was planned. Run snakemake again.")
        text = text.replace(json.dumps(address), json.dumps(place))
    return type(settings).model_validate_json(text)


def add_threads(parser: ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--jobs-per-gpu",
        type=int,
        choices=range(1, MOST_JOBS + 1),
        default=1,
        help="jobs that share a GPU, each with such a part of its memory (default: 1)",
    )


def add_processes(parser: ArgumentParser) -> None:
    """For a verb that can share its work out: `copra.cli` then starts it so many times."""
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="processes that share the work, each with a GPU where there are any, and with a part of the "
        "threads (default: 1)",
    )


def folder(text: str) -> Path:
    """A folder, given as such or by a file in it: a rule names the file that it depends on."""
    path = Path(text)
    return path.parent if path.suffix in (".json", ".parquet") else path


def settings_of(arguments: Namespace, kind: type[S]) -> S:
    """Check the JSON of --settings.

    Raises:
        CopraError: not JSON, or not these settings.
    """
    try:
        return kind.model_validate(_given(arguments))
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        raise CopraError(f"--settings: {error}") from None


def made_by(arguments: Namespace, *files: Path) -> dict[str, Any]:
    """Return what a result says in its own file of how it was made: the value of --settings, and checksums
    of the small `files` that it was made of.

    Weights and rows have small files that stand for them (manifests, summaries of splits). No place and no
    time is named, so that equal runs give equal files.

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
    """The small file that stands for a split of a prepared task."""
    return data / f"{split}.json"


def _given(arguments: Namespace) -> Any:
    """The JSON value of --settings as it was given, without defaults."""
    text = arguments.settings
    return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)


def use_threads(arguments: Namespace, precision: Precision = "float32") -> None:
    """Compute with exactly so many threads, reproducibly and without broken kernels, on a GPU of this
    process's own if there are any: that is chosen before torch is imported."""
    together, jobs = processes.world_size(), arguments.jobs_per_gpu
    if together == 1:
        take_gpus(jobs=jobs)
    # Batches of ever new widths leave holes in memory that is cut up once and for all.
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
    # Deterministic mode would also fill all new memory with NaN, a write of every tensor that is made.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # With a mask, cuDNN's attention returns NaN in the backward pass where the length modulo 128 is 64
    # (pytorch/pytorch#196678) and for single queries, as a latent's pass has them
    # (NVIDIA/cudnn-frontend#1072). PyTorch then takes another of its kernels.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if precision == "tf32":
        from copra.models.checkpoint import has_tf32

        torch.set_float32_matmul_precision("high" if has_tf32() else "highest")


def recorded_shape(model: Path) -> ModelShape:
    """The shape of a checkpoint, from its manifest alone."""
    return ModelShape.from_json(read_sealed_json(model / MANIFEST)["shape"])


def rows_of(data: Path, split: str, limit: int | None = None) -> "list[Row]":
    """The rows of a split of a prepared task, or the first `limit` of them."""
    from copra.tasks.prepare import read_rows

    return read_rows(data / f"{split}.parquet")[:limit]
