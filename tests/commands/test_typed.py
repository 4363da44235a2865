"""Commands with a config and the name of a job in place of settings."""

import pytest

from copra.cli import main
from copra.commands.typed import options_of_job
from copra.utils.errors import CopraError

pytestmark = pytest.mark.slow

CONFIG = """\
task: sums
tasks: {sums: {kind: word_sums}}
base: llama
bases: {llama: {from_scratch: {hidden_size: 16, layers: 2, heads: 4, intermediate_size: 32}}}
steps:
  cot: {kind: cot, training: {steps: 8}}
  drop-1: {kind: prune, unit: layers, metric: cosine, budget: {count: 1}}
recipes: [[cot, drop-1]]
latency: null
"""


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """The config, in the folder that the test works in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return tmp_path / "mine.yaml"


def message(*words: str) -> str:
    with pytest.raises(CopraError) as caught:
        options_of_job(words[0], words[1:])
    return str(caught.value)


def test_a_name_may_leave_out_seeds(config):
    for name in ("llama", "llama@0"):
        assert (
            options_of_job("data", ["mine.yaml", "sums/train"])[-1] == "results/mine/data/sums/train.parquet"
        )
        assert "mine.yaml llama@0+cot" in message("evaluate", "mine.yaml", f"{name}+cot")
    config.write_text(f"{CONFIG}seeds: [0, 1]\n")
    assert message("train", "mine.yaml", "llama+cot") == (
        "mine.yaml: copra train has 'llama+cot' once per seed. Name one: llama@0+cot, llama@1+cot."
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "mine.yaml", "lama+cot"), "has no job 'lama+cot' (did you mean 'llama@0+cot'?)"),
        (("prune", "mine.yaml", "llama+cot"), "(did you mean 'llama@0+cot+drop-1'?)"),
        (("table", "mine.yaml", "flops"), "copra table has no job 'flops' ("),
        (
            ("sweep-latents", "mine.yaml", "llama+cot"),
            "mine.yaml: no job of this experiment runs copra sweep-latents.",
        ),
        (("latency", "mine.yaml"), "mine.yaml: no job of this experiment runs copra latency."),
        (("train", "mine.yaml"), "name a job after it: copra train mine.yaml NAME (known: llama@0+cot)."),
        (("train", "none.yaml", "llama+cot"), "none.yaml: cannot be read"),
    ],
)
def test_a_name_without_a_job_is_a_message(words, expected):
    assert expected in message(*words)


def test_missing_inputs_are_named_with_the_commands_that_make_them():
    assert message("train", "mine.yaml", "llama+cot").splitlines() == [
        "results/mine/models/llama@0/copra.json: no such file. Make what is missing:",
        "  copra base mine.yaml llama@0",
        "  copra data mine.yaml sums/train",
        "  copra data mine.yaml sums/valid",
        "  snakemake --cores all --configfile mine.yaml -- results/mine/models/llama@0+cot/copra.json"
        "    (with all that it needs)",
    ]
    assert "  copra score mine.yaml llama@0+cot/" in message("select", "mine.yaml", "llama+cot+drop-1")
    assert "  copra select mine.yaml llama@0+cot+drop-1" in message("prune", "mine.yaml", "llama+cot+drop-1")


def test_several_configs_are_merged(config, tmp_path):
    (tmp_path / "more.yaml").write_text("recipes: [[cot]]")
    assert "no job of this experiment" in message("prune", "mine.yaml", "more.yaml", "llama+cot+drop-1")


def test_options_after_the_name_win(capsys, tmp_path):
    assert main(["data", "mine.yaml", "sums/test", "--output", str(tmp_path / "other")]) == 0
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"test.json", "test.parquet"}
    assert main(["train", "mine.yaml", "llama+ctt"]) == 1
    assert capsys.readouterr().err.startswith("copra train: mine.yaml: copra train has no job 'llama+ctt'")
