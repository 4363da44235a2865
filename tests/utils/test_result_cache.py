"""What is remembered over a kill: whole lines of all processes, under a key, and nothing else."""

import json

import pytest

from copra.utils.errors import CopraError
from copra.utils.result_cache import ResultCache


def never():
    raise AssertionError("found again")


@pytest.fixture
def remember(tmp_path, monkeypatch):
    """Makes the memory of a process."""

    def make(rank: int = 0, kind: str = "answers", key=("a", 1)) -> ResultCache:
        monkeypatch.setenv("RANK", str(rank))
        return ResultCache(tmp_path / "state", kind, key)

    return make


def test_a_value_is_found_once(remember):
    memory, value = remember(), {"text": "é\n", "numbers": [1, 2.5], "none": None}
    assert memory.get_or_compute("x", lambda: value) == value
    assert memory.get_or_compute("x", never) == value
    assert remember().get_or_compute("x", never) == value
    assert [json.loads(line) for line in memory.file.read_text().splitlines()] == [{"name": "x", **value}]


def test_nothing_is_on_the_disk_before_the_first_value(remember, tmp_path):
    remember().delete()
    assert not (tmp_path / "state").exists()


def test_each_key_and_each_kind_has_values_of_its_own(remember):
    remember().get_or_compute("x", lambda: {"n": 1})
    others = [remember(key=("a", 2)), remember(key=["b", 1]), remember(kind="losses")]
    assert [other.known for other in others] == [{}, {}, {}]
    assert remember(key=["a", 1]).known == {"x": {"n": 1}}


def test_processes_write_files_of_their_own_and_read_all(remember):
    for rank in range(3):
        remember(rank).get_or_compute(f"x{rank}", lambda rank=rank: {"n": rank})
    folder = remember().folder
    assert {file.name for file in folder.iterdir()} == {"answers.jsonl", "answers.1.jsonl", "answers.2.jsonl"}
    for rank in (0, 1, 7):
        assert remember(rank).known == {f"x{n}": {"n": n} for n in range(3)}
    remember(1).delete()
    assert not folder.exists()


@pytest.mark.parametrize("lost", range(1, 24))
def test_a_line_that_is_cut_anywhere_is_passed_over(remember, lost):
    memory = remember()
    for number in range(2):
        memory.get_or_compute(f"x{number}", lambda number=number: {"n": number})
    whole = memory.file.read_bytes()
    assert len(whole.splitlines()[-1]) == 22
    memory.file.write_bytes(whole[:-lost])
    # Of the last line, nothing, a part, or all but the line break is left.
    assert remember(1).known == {"x0": {"n": 0}} | ({"x1": {"n": 1}} if lost == 1 else {})
    again = remember()
    assert again.get_or_compute("x1", never if lost == 1 else lambda: {"n": 1}) == {"n": 1}
    again.get_or_compute("x2", lambda: {"n": 2})
    assert remember().known == {f"x{n}": {"n": n} for n in range(3)}


@pytest.mark.parametrize("rest", [b"\x00" * 40, b"\xff\xfe{", b"12", b'{"n": 3}\n'])
def test_what_is_no_value_is_passed_over(remember, rest):
    """A machine that lost its power may leave anything at the end of a file."""
    memory = remember()
    memory.get_or_compute("x", lambda: {"n": 1})
    with open(memory.file, "ab") as file:
        file.write(rest)
    remember().get_or_compute("y", lambda: {"n": 2})
    assert remember().known == {"x": {"n": 1}, "y": {"n": 2}}


def test_a_place_that_cannot_be_written_is_named(remember, tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(CopraError, match=rf"^{tmp_path}/state/.*answers.jsonl: could not be written"):
        remember().get_or_compute("x", lambda: {"n": 1})
