"""copra ask: by a folder, by the name of a model or of its recipe, and at a prompt; its errors."""

import io
import re
from pathlib import Path

import pytest
import yaml

from copra.cli import main
from copra.models.checkpoint import save_checkpoint
from helpers.manifests import provenance
from helpers.thinkers import make_thinker
from helpers.tiny import TRAINING, tiny_config

QUESTION = "2 and 3 ?"
COST = re.compile(r"\(2 latents, \d+ tokens, [\d.]+ [kM]FLOPs, \d+ ms\)")


@pytest.fixture
def place(word_base, tmp_path, monkeypatch):
    """A folder with a config, of whose models one is there: random weights and two latents."""
    monkeypatch.chdir(tmp_path)
    coconut = {"kind": "coconut", "max_latent_stage": 2, "training": TRAINING}
    config = tiny_config(steps__coconut=coconut, recipes=[["cot"], ["cot", "coconut"]])
    Path("config.yaml").write_text(yaml.safe_dump(config))
    base = word_base()
    spec = make_thinker(base, 2)
    folder = tmp_path / "results" / "config" / "models" / "llama@0+cot+coconut"
    save_checkpoint(folder, base.model, base.tokenizer, provenance(decoding=spec))
    return folder


def ask(capsys, *words, status=0):
    assert main(["ask", *map(str, words)]) == status
    return capsys.readouterr()


@pytest.mark.parametrize("name", ["llama@0+cot+coconut", "llama+cot+coconut", "folder"])
def test_a_question_is_answered_with_its_cost(place, capsys, name):
    lines = ask(capsys, place if name == "folder" else name, QUESTION).out.splitlines()
    assert COST.fullmatch(lines[-1]), lines
    assert lines[-2] == "no answer" or lines[-2].startswith("answer: ")


def test_the_lens_has_a_line_per_latent(place, capsys):
    out = ask(capsys, place, QUESTION, "--lens", "--max-new-tokens", 5).out
    lines = re.findall(r"^latent (\d): (.*)$", out, re.MULTILINE)
    assert [number for number, _ in lines] == ["1", "2"]
    assert all(re.fullmatch(r"('.*?' \d+%(, |$)){5}", tokens) for _, tokens in lines), lines


def test_at_a_prompt_every_line_is_a_question(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\n2 and zebra ?\n{QUESTION}\n"))
    printed = ask(capsys, place)
    costs = [line for line in printed.out.splitlines() if COST.fullmatch(line)]
    assert len(costs) == 2
    assert "lacks 'zebra'" in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama@0+cot+coconot", QUESTION], "(did you mean 'llama@0+cot+coconut'?)"),
        (["llama+cot", QUESTION], "results/config/models/llama@0+cot/copra.json"),
        (["x", QUESTION, "--config", "nothing.yaml"], "there is no nothing.yaml"),
        (["llama@0+cot+coconut", "zebra ?"], "copra ask: the tokenizer of this model"),
    ],
)
def test_what_cannot_be_asked_is_said(place, capsys, words, message):
    assert message in ask(capsys, *words, status=1).err
