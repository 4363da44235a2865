"""Atomic reading and writing of artifacts: a written artifact is complete or absent.

Every writer makes a temporary file beside the target, flushes it to the disk and renames it, so that a
process killed at any moment leaves the old artifact, the new one, or none.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from copra.utils.containers import container_of
from copra.utils.errors import CopraError
from copra.utils.plain import check_plain

if TYPE_CHECKING:
    import pandas
    import pyarrow

MANIFEST = "copra.json"
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
MADE_BY = "made_by"
"""Key of the provenance record in a result's JSON or metadata (see `copra.experiment.provenance`)."""
SEAL = "digest"


def canonical_json(value: Any) -> str:
    """Return JSON text that is equal for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`.

    The caller may make a file or a folder. A file with the same bytes as `path` is not replaced. On any error
    the temporary is removed and `path` is unchanged. Leftovers of a killed process are removed first.

    Raises:
        CopraError: the disk is full or the path cannot be written; the message names the path.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{path.name}.tmp-*"):
            _remove(leftover)
        temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
        try:
            yield temporary
            _flush(temporary)
            if _same_file(temporary, path):
                _remove(temporary)
                return
            old = temporary.with_name(f"{temporary.name}-old")
            if temporary.is_dir() and path.exists():
                # Removing a folder is not atomic, so it is renamed first.
                os.replace(path, old)
            os.replace(temporary, path)
            _flush_folder(path.parent)
            _remove(old)
        except BaseException:
            _remove(temporary)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CopraError(
            f"{path}: could not be written ({reason}). Free some space or check the permissions of "
            f"{path.parent}, then run again: nothing was left half-written."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically, indented for readability."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CopraError: the file is missing or not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CopraError(f"{path}: no such file. Run the rule that makes it, or snakemake.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CopraError(f"{path}: not valid JSON ({error}). Delete it and run snakemake again.") from None


def read_json_lines(path: Path) -> list[Any]:
    """Read a file of JSON values, one per line.

    Raises:
        CopraError: the file is missing or a line is not JSON; the message names file and line.
    """
    lines = []
    try:
        with open(path) as file:
            for line in file:
                lines.append(json.loads(line))
    except FileNotFoundError:
        raise CopraError(f"{path}: no such file. Run the rule that makes it, or snakemake.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CopraError(
            f"{path}, line {len(lines) + 1}: not valid JSON ({error}). Delete it and run snakemake again."
        ) from None
    return lines


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with the digest of its content as the last key, so that edits are detected."""
    # JSON converts all keys to strings, which can change their order.
    write_json(path, {**value, SEAL: digest(json.loads(canonical_json(value)))})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote, without the digest.

    Raises:
        CopraError: the file is missing, not JSON, or changed since it was written; the message names it.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.pop(SEAL, None) != digest(value):
        raise CopraError(
            f"{path}: not as copra wrote it (its digest differs from what it says), so it was edited. Delete "
            "it and run snakemake again; what a step does is set in the config."
        )
    return value


def read_yaml(path: Path) -> Any:
    """Read a YAML or JSON file, refusing repeated keys.

    Raises:
        CopraError: the file is missing, is not YAML, repeats a key (with the line), or holds a value that is
            not plain (`copra.utils.plain`).
    """

    class Loader(yaml.SafeLoader):
        """A loader that refuses repeated keys, of which PyYAML silently keeps the last."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in seen:
                raise CopraError(
                    f"{path}, line {line}: key {key!r} is given twice (first on line {seen[key]})"
                )
            seen[key] = line
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader)
    except OSError as error:
        raise CopraError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        kind = container_of(Path(path).read_bytes()) or "not UTF-8 text"
        raise CopraError(f"{path}: is {kind} ({error.reason}). Give a YAML file as UTF-8 text.") from None
    except RecursionError:
        raise CopraError(f"{path}: values are nested too deeply to be read. Flatten it.") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        # PyYAML does not catch errors of values: numbers of 5,000 digits, dates such as 2026-99-99.
        reason = " ".join(str(error).split())
        raise CopraError(f"{path}: not valid YAML: {reason}") from None
    check_plain(value, str(path))
    return value


def write_parquet(path: Path, frame: "pandas.DataFrame", record: dict[str, Any] | None = None) -> None:
    """Write a table atomically, with `record` as JSON in the file's metadata."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    if record is not None:
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"copra": canonical_json(record).encode()}
        )
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def read_parquet(path: Path) -> "pandas.DataFrame":
    """Read a table.

    Raises:
        CopraError: the file is missing or truncated; the message names it.
    """
    return _parquet(path).to_pandas()


def parquet_record(path: Path) -> dict[str, Any]:
    """Return the `record` that `write_parquet` stored with the table, {} if there is none."""
    return json.loads((_parquet(path).schema.metadata or {}).get(b"copra", b"{}"))


def write_sealed_parquet(
    path: Path, frame: "pandas.DataFrame", summary: dict[str, Any], record: dict[str, Any] | None = None
) -> None:
    """Write a table by `write_parquet`, then a small sealed file that represents it.

    The small file holds `summary` with the table's sha256.
    """
    write_parquet(path, frame, record)
    write_sealed_json(summary_beside(path), {"sha256": file_sha256(path), **summary})


def read_sealed_parquet(path: Path) -> "pandas.DataFrame":
    """Read what `write_sealed_parquet` wrote.

    Raises:
        CopraError: the table or the small file beside it is missing or changed since it was written.
    """
    if not Path(path).is_file():
        raise CopraError(f"{path}: no such file. Run the rule that makes it, or snakemake.")
    summary = summary_beside(path)
    if read_sealed_json(summary).get("sha256") != file_sha256(path):
        raise CopraError(
            f"{path}: not the file that {summary.name} was written for: it was changed or cut short. Delete "
            "both and run snakemake again; what is in them is changed in the config and the files it names."
        )
    return read_parquet(path)


def summary_beside(table: Path) -> Path:
    """Return the path of the small file that represents a large table, whose own time can then be ignored."""
    return Path(table).with_suffix(".json")


def tables_beside(summaries: Iterable[str]) -> list[str]:
    """Return the paths of the large tables that small files represent."""
    return [str(Path(each).with_suffix(".parquet")) for each in summaries]


def _parquet(path: Path) -> "pyarrow.Table":
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise CopraError(f"{path}: no such file. Run the rule that makes it, or snakemake.") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CopraError(
            f"{path}: not a whole Parquet file ({error}). Delete it and run snakemake again."
        ) from None


def _same_file(one: Path, other: Path) -> bool:
    """True if both are files with the same content and mode."""
    if not (one.is_file() and other.is_file()):
        return False
    found = [(file.stat().st_mode, file.stat().st_size) for file in (one, other)]
    return found[0] == found[1] and file_sha256(one) == file_sha256(other)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    # Some libraries write files that only their owner can read; results are readable by all who can see the
    # folder.
    mode = path.parent.stat().st_mode & 0o666
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        file.chmod(mode)
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
