"""Containers of data files, made here byte by byte or by their own libraries."""

import gzip
import io
import itertools
import json
import lzma
import re
import tarfile
import zipfile

import pandas
import pytest

from copra.utils.containers import count_records, read_records
from copra.utils.errors import CopraError

ROWS = [{"question": "a?", "n": 1}, {"question": "b?", "n": 2}]
LINES = [json.dumps(row).encode() for row in ROWS]


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("train.jsonl", b"\n".join(LINES))
    return held.getvalue()


def tarred() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train.jsonl"))
    return held.getvalue()


@pytest.mark.parametrize("suffix", ["jsonl", "gz", "anything"])
def test_a_container_is_known_by_its_content(tmp_path, suffix):
    file = tmp_path / f"train.{suffix}"
    for content in (b"\n".join(LINES), gzip.compress(b"\n".join(LINES) + b"\n\n")):
        file.write_bytes(content)
        assert read_records("train", file) == LINES
        assert count_records(file) == 2
    for indent in (None, 1):
        file.write_text("\ufeff\n" + json.dumps(ROWS, indent=indent))
        assert read_records("train", file) == ROWS
        assert count_records(file) == 2
    pandas.DataFrame(ROWS).to_parquet(file)
    assert read_records("train", file) == ROWS
    assert count_records(file) == 2


def test_lines_that_are_arrays_are_lines(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("[1]\n[2]\n")
    assert read_records("train", file) == [b"[1]", b"[2]"]
    file.write_text("[1, 2]")
    assert read_records("train", file) == [1, 2]
    assert read_records("train", file, by_line=True) == [b"[1, 2]"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped(), "a zip archive"),
        (tarred(), "a tar archive"),
        (gzip.compress(tarred()), "a tar archive"),
        (lzma.compress(b"text"), "an xz archive"),
        (b"(\xb5/\xfd more", "a zstd archive"),
        ("text".encode("utf-16"), "UTF-16 text"),
        ("text".encode("utf-16-le"), "UTF-16 text"),
        ("text".encode("utf-16-be"), "UTF-16 text"),
        (b"question,answer\nHow many?,7\n", "CSV text"),
        (b'"question"\t"answer"\r\nHow many?\t7\r\n', "CSV text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"ARROW1\x00\x00", "an Arrow file"),
        (gzip.compress(b"text" * 99)[:-9], "a damaged gzip file"),
        (b"PAR1 and no more", "a damaged Parquet file"),
        (b'[{"question": "a?"},', "a JSON array that cannot be read"),
        (b"[\n{},\n", "a JSON array that cannot be read"),
        (b'{\n "question": "a?"\n}\n{\n "question": "b?"\n}', "holds JSON objects of several lines"),
        (b'["\xff"]', "not UTF-8 text"),
    ],
    # Archives hold the time at which they were made.
    ids=itertools.count(),
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, content, kind):
    file = tmp_path / "train.jsonl"
    file.write_bytes(content)
    with pytest.raises(CopraError, match=rf"^train: {re.escape(str(file))} .*{kind}") as caught:
        read_records("train", file)
    assert "\n" not in str(caught.value)
