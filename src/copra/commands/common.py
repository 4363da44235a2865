"""Functions that several commands share: settings from the shell line, provenance, reading of inputs."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from copra.models.manifest import Manifest
from copra.schema.settings import Settings
from copra.schema.shape import ModelShape
from copra.tasks.prepare import read_rows
from copra.tasks.task import Row
from copra.utils.digests import address_of
from copra.utils.errors import CopraError
from copra.utils.files import MADE_BY, file_sha256

S = TypeVar("S", bound=Settings)


class Coded(Settings):
    """Settings of a rule. `code` is the fingerprint of its code, which serves only to invalidate results."""

    code: str | None = None


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


def recorded_shape(model: Path) -> ModelShape:
    """Return the shape of a checkpoint, from its manifest alone."""
    return Manifest.read(model).shape


def rows_of(data: Path, split: str, limit: int | None = None) -> list[Row]:
    """Return the rows of a split of a prepared task, or the first `limit` of them."""
    return read_rows(data / f"{split}.parquet")[:limit]
