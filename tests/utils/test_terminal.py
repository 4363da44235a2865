"""Tables for people: whole lines where output is piped, and lines of the terminal's width elsewhere."""

import re
import sys

import pytest

from copra.utils.terminal import table

NODE = "llama@0+cot+drop-1+coconut.3"
HEADS, ALIGN = ["model", "done", "left"], ["left", "right", "left"]
ROWS = [[NODE, "500 of 1,000 steps", "2 min [bold] :smile:"], ["base", 7, ""]]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 40 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")


def test_piped_tables_are_plain_text_with_whole_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    wide = [["x" * 300, "1", "end"]]
    assert table(HEADS, ROWS, ALIGN).split("\n") == [
        "model                                       done  left",
        "llama@0+cot+drop-1+coconut.3  500 of 1,000 steps  2 min [bold] :smile:",
        "base                                           7",
    ]
    assert table(HEADS, wide, ALIGN).split("\n")[1] == f"{'x' * 300}     1  end"


def test_on_a_terminal_nothing_is_wider_than_it_and_nothing_is_cut_off(terminal):
    found = table(HEADS, ROWS, ALIGN)
    assert "\x1b[1m" in found
    lines = re.sub(r"\x1b\[[0-9;]*m", "", found).split("\n")
    assert max(map(len, lines)) <= 40
    assert "".join(line[: len(NODE)].split(" ")[0] for line in lines[1:]) == NODE + "base"
