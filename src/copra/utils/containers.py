"""Readers for the file formats in which data sets are published."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

from copra.utils.errors import CopraError
from copra.utils.problems import LONGEST, shown

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
UNREADABLE = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}
"""The first bytes of unsupported file formats, with their names for messages."""
CSV_HEADER = re.compile(rb'\s*"?\w+"?([,;\t] *"?\w+"?)+\s*')
"""A first line of names separated by commas, semicolons or tabs only."""
TAR = slice(257, 262)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Delimiters of tables as text, by the suffix of the file, which `.gz` may follow."""


def read_records(key: str, path: Path, *, by_line: bool = False) -> list[Any]:
    """Return the records of a file.

    They are the rows of Parquet, the elements of a JSON array, or the lines of other text. The format is
    detected by content, not by name. Lines are bytes; rows and elements are JSON values. With `by_line`, text
    is always split into lines.

    Raises:
        CopraError: the file cannot be read or has an unsupported format; the message names the key.
    """
    content = read_content(key, path)
    if content.startswith(PARQUET):
        return _parquet_rows(key, path)
    text = content.removeprefix(codecs.BOM_UTF8).rstrip()
    if not text:
        return []
    if not by_line and text.lstrip()[:1] == b"[":
        return _array(key, path, text)
    lines = text.split(b"\n")
    if CSV_HEADER.fullmatch(lines[0]):
        raise CopraError(
            f"{key}: {path} is CSV text (its first line is {lines[0][:LONGEST].decode(errors='replace')!r}). "
            "Make JSON lines or Parquet of it, or let it end in .csv or .tsv for a task of kind: rows."
        )
    if not by_line and lines[0].strip() == b"{":
        raise CopraError(
            f"{key}: {path} holds JSON objects of several lines. Put each on one line, or make a JSON array."
        )
    return lines


def delimiter_of(path: Path) -> str | None:
    """Return the delimiter of a CSV or TSV file, by its suffix; None for other files."""
    return DELIMITERS.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def read_delimited(key: str, path: Path, delimiter: str) -> list[dict[Any, Any]]:
    """Return the rows of a CSV or TSV file as mappings from the names in its first line to texts.

    A row with fewer fields has None for the others; one with more has a key None.

    Raises:
        CopraError: the file cannot be read, is not UTF-8 text or not CSV, or its first line repeats a name.
    """
    try:
        text = read_content(key, path).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = list(reader.fieldnames or [])
        rows = list(reader)
    except UnicodeDecodeError as error:
        raise CopraError(
            f"{key}: {path} is not UTF-8 text ({error.reason} at byte {error.start}). Convert it."
        ) from None
    except csv.Error as error:
        raise CopraError(f"{key}: {path} cannot be read as CSV ({error}). Repair it.") from None
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise CopraError(f"{key}: {path} has column {shown(repeated[0])} twice. Rename one.")
    return rows


def read_rows_of_any(key: str, path: Path) -> list[Any]:
    """Return the rows of a CSV or TSV file, or the records of any other, as `json_object` reads them.

    Raises:
        CopraError: as in `read_delimited` and `read_records`.
    """
    delimiter = delimiter_of(path)
    return read_delimited(key, path, delimiter) if delimiter else read_records(key, path)


def json_object(record: Any) -> dict[str, Any]:
    """Return a record of `read_records` as a mapping; bytes are parsed as JSON.

    Raises:
        ValueError: it is not a JSON object, with the reason.
    """
    if isinstance(record, bytes):
        try:
            record = json.loads(decoded(record))
        except json.JSONDecodeError as error:
            raise ValueError(f"invalid JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def decoded(line: bytes) -> str:
    """Return a line as text.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def count_records(path: Path) -> int:
    """Return the approximate number of rows of a file, without parsing them.

    Raises:
        CopraError: as in `read_content`.
    """
    content = read_content("file", path)
    if content.startswith(PARQUET):
        from pyarrow import parquet

        return parquet.read_metadata(path).num_rows
    return content.count(b'"question"') or content.rstrip().count(b"\n") + 1


def read_content(key: str, path: Path) -> bytes:
    """Return the bytes of a file, decompressed if it is gzip.

    Raises:
        CopraError: the file cannot be read or has an unsupported format.
    """
    try:
        content = path.read_bytes()
        if content.startswith(GZIP):
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CopraError(f"{key}: {path} is a damaged gzip file ({error}). Fetch it again.") from None
    except OSError as error:
        raise CopraError(f"{key}: {path} cannot be read ({error.strerror}). Correct the path.") from None
    if (kind := unreadable_kind(content)) is not None:
        raise CopraError(f"{key}: {path} is {kind}. Give text such as JSON lines (plain or .gz), or Parquet.")
    return content


def read_text_file(key: str, path: Path) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        CopraError: the file cannot be read or is not UTF-8 text; the message names its format if it is known.
    """
    try:
        content = path.read_bytes()
        if (kind := container_of(content)) is None:
            return content.decode("utf-8-sig")
    except OSError as error:
        raise CopraError(f"{key}: {path} cannot be read ({error.strerror}). Correct the path.") from None
    except UnicodeDecodeError as error:
        kind = f"not UTF-8 text ({error.reason} at byte {error.start})"
    raise CopraError(f"{key}: {path} is {kind}. Give UTF-8 text.")


def container_of(content: bytes) -> str | None:
    """Return the name of a file's format by its bytes; None for plain UTF-8 text and unknown formats."""
    if content.startswith(GZIP):
        return "a gzip file"
    return "a Parquet file" if content.startswith(PARQUET) else unreadable_kind(content)


def unreadable_kind(content: bytes) -> str | None:
    """Return the name of an unsupported format by its bytes; None for all others."""
    if content[TAR] == b"ustar":
        return "a tar archive"
    if b"\0\0" in (content[:4:2], content[1:4:2]):  # without a byte order mark
        return "UTF-16 text"
    return next((name for start, name in UNREADABLE.items() if content.startswith(start)), None)


def _parquet_rows(key: str, path: Path) -> list[Any]:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise CopraError(f"{key}: {path} is a damaged Parquet file ({error}). Fetch it again.") from None


def _array(key: str, path: Path, text: bytes) -> list[Any]:
    """Return the elements of a JSON array, or the lines of a file whose first line is a JSON value itself."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise CopraError(f"{key}: {path} is not UTF-8 text ({error}). Convert it.") from None
    except json.JSONDecodeError as error:
        lines = text.split(b"\n")
        if len(lines) > 1 and _is_json(lines[0]):
            return lines
        raise CopraError(f"{key}: {path} is a JSON array that cannot be read ({error}). Repair it.") from None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
