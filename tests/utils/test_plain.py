"""What YAML and JSON can hold and a config cannot: one line each, in bounded time and memory."""

import gzip
import json
import tracemalloc
from itertools import pairwise

import pytest

from copra.experiment.config import parse
from copra.utils.errors import CopraError
from copra.utils.files import read_yaml
from copra.utils.plain import DEEPEST, check_plain

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghijkl")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: 2026-01-02", r"task: datetime\.date\(2026, 1, 2\) is a date to YAML\. Put it in quotes"),
        ("task: 2026-01-02 10:00:00", r"task: datetime.* is a date to YAML"),
        ("steps: {2026-01-02: 1}", r"steps\..*2026.*: the key is no text to YAML\. Put it in quotes"),
        ("task: 2026-99-01", "not valid YAML: month must be in 1..12"),
        ("null: 1", "None: the key is no text to YAML"),
        ("on: 1", "True: the key is no text to YAML"),
        ("task: .nan", "task: nan is no finite number"),
        ("task: [1, -.inf]", r"task\.1: -inf is no finite number"),
        ("task: " + "1" * 5000, "not valid YAML: Exceeds the limit"),
        ("task: 0x" + "1" * 5000, "task: a number of 19997 bits is beyond 2\\^53"),
        ("? 0x" + "1" * 5000 + "\n: 1", "beyond 2\\^53"),
        ("task: 99999999999999999999", "task: 99999999999999999999 is beyond 2\\^53"),
        ("task: " + "[" * 500 + "]" * 500, "nested too deeply to be read"),
        ("task: " + "[" * 60 + "]" * 60, "nested more than 50 levels deep"),
        (BOMB, "more than 1,000,000 values, counting what aliases repeat"),
        ("a: &a [*a]", "not valid YAML: found unconstructable recursive node"),
        ('task: "\\ud800"', r"task: '\\ud800' has a character that no file can hold"),
        ('task: "\\0"', r"task: '\\x00' has a character that no file can hold"),
        ("task: !!set {a}", "task: {'a'} is a set, which no key takes"),
        ("task: !!binary aGVsbG8=", "task: b'hello' is a bytes, which no key takes"),
    ],
    ids=range(20),
)
def test_what_no_config_holds_is_one_line(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    tracemalloc.start()
    with pytest.raises(CopraError, match=rf"^{tmp_path}/c\.yaml: .*{message}") as caught:
        read_yaml(tmp_path / "c.yaml")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert peak < 50e6


@pytest.mark.parametrize(
    ("content", "kind"),
    [(gzip.compress(b"task: a"), "a gzip file"), ("task: ä".encode("utf-16"), "UTF-16 text")],
    ids=["gzip", "utf-16"],
)
def test_a_config_that_is_no_text_is_named_as_what_it_is(tmp_path, content, kind):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(CopraError, match=rf"c\.yaml: is {kind} .*\. Give a YAML file as UTF-8 text\.$"):
        read_yaml(tmp_path / "c.yaml")


def test_values_that_come_from_snakemakes_own_readers_are_checked_too():
    """Snakemake reads a config as JSON first, where NaN and Infinity are numbers."""
    with pytest.raises(CopraError, match=r"^mine: base: inf is no finite number\. [^\n]*$"):
        parse(json.loads('{"base": Infinity}'), "mine")
    with pytest.raises(CopraError, match=r"^mine: values are nested more than 50 levels deep\."):
        parse(json.loads('{"a":' * 900 + "1" + "}" * 900), "mine")


def test_aliases_may_repeat_what_is_small_and_levels_count_through_them():
    inner = [1]
    check_plain({"a": inner, "b": [inner, inner]}, "mine")
    deep = inner
    for _ in range(DEEPEST - 2):
        deep = [deep]
    check_plain({"a": deep}, "mine")
    with pytest.raises(CopraError, match="nested more than 50"):
        check_plain({"a": deep, "b": [[deep]]}, "mine")


def test_every_problem_is_told():
    with pytest.raises(CopraError) as caught:
        check_plain({"a": float("nan"), "b": {None: 1}}, "mine")
    assert len(str(caught.value).split("\n")) == 2
