"""Digests of files: what counts as changed, and what a cache may not get wrong."""

import hashlib
import json
import os
import shutil
import time

import pytest

from copra.utils import digests
from copra.utils.digests import Digests, address_of
from copra.utils.errors import CopraError

OLD = 1_700_000_000


def write(path, text, seconds=OLD):
    path.write_text(text)
    os.utime(path, (seconds, seconds))
    return path


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def hashed(monkeypatch):
    """The paths of all files that are read to be hashed."""
    seen = []

    def file_sha256(path):
        seen.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(digests, "file_sha256", file_sha256)
    # Times of entries are those of now, whatever the times of contents are set to.
    monkeypatch.setattr(digests, "RECENT", 0)
    return seen


def test_a_file_is_hashed_once_as_long_as_it_stays_as_it_is(tmp_path, hashed):
    file, cache = write(tmp_path / "rows.jsonl", "one"), tmp_path / "digests.json"
    for _ in range(2):
        assert Digests(cache).file(file) == sha256("one")
    assert hashed == [file]


def test_equal_size_and_time_do_not_hide_another_content(tmp_path, hashed):
    file, cache = write(tmp_path / "rows.jsonl", "one"), tmp_path / "digests.json"
    Digests(cache).file(file)
    # The clock of a file system ticks every few milliseconds.
    time.sleep(0.05)
    write(file, "two")
    assert Digests(cache).file(file) == sha256("two")
    shutil.move(write(tmp_path / "older.jsonl", "six", OLD - 1000), file)
    assert Digests(cache).file(file) == sha256("six")


def test_a_file_that_has_just_changed_is_hashed_again_by_the_next_process(tmp_path):
    file, cache = write(tmp_path / "rows.jsonl", "one"), tmp_path / "digests.json"
    assert Digests(cache).file(file) == sha256("one")
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', '{"/": [[0], 1, 2]}', "[1, 2]", "\xff"])
def test_a_damaged_cache_is_computed_again(tmp_path, text):
    file, cache = write(tmp_path / "rows.jsonl", "one"), tmp_path / "digests.json"
    cache.write_bytes(text.encode("latin-1"))
    assert Digests(cache).file(file) == sha256("one")


def test_a_cache_that_cannot_be_written_is_no_matter(tmp_path, hashed):
    file = write(tmp_path / "rows.jsonl", "one")
    blocked = write(tmp_path / "no-folder", "") / "digests.json"
    assert Digests(blocked).file(file) == sha256("one")


def test_what_was_made_is_kept_for_one_key(tmp_path):
    cache, made = tmp_path / "digests.json", []

    def make(value):
        made.append(value)
        return {"train": value}

    for key, value in (("a", 1), ("a", 2), ("b", 3), ("a", 4)):
        found = Digests(cache).made("sums", key, lambda value=value: make(value))
        assert found == {"train": made[-1]}
    assert made == [1, 3, 4]
    assert list(json.loads(cache.read_text())) == ["sums"]


def test_the_address_of_a_file_says_its_content_alone(tmp_path):
    one, two = write(tmp_path / "one", "text"), write(tmp_path / "two.txt", "text", OLD + 1)
    assert address_of(one) == address_of(two) == f"sha256:{sha256('text')}"
    with pytest.raises(CopraError, match=r"none: cannot be read \(No such file"):
        address_of(tmp_path / "none")


def test_every_file_of_a_folder_counts_but_hidden_ones(tmp_path):
    folder = tmp_path / "base"
    (folder / "deep").mkdir(parents=True)
    names = ["config.json", "tokenizer.model", "model.safetensors", "chat_template.jinja", "deep/code.py"]
    for name in names:
        write(folder / name, "text")
    first = address_of(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert address_of(tmp_path / "copy") == first
    (folder / ".cache").mkdir()
    write(folder / ".cache" / "lock", "text")
    assert address_of(folder) == first
    others = set()
    for name in names:
        write(folder / name, "next")
        others.add(address_of(folder))
        write(folder / name, "text")
    (folder / "config.json").rename(folder / "other.json")
    others.add(address_of(folder))
    assert len(others | {first}) == len(names) + 2
