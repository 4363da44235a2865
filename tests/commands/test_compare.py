"""copra compare and copra best: what they print, from evaluations and tables written by hand."""

import re
from pathlib import Path

import pandas
import pytest
import yaml

from copra.cli import main
from copra.evaluation.statistics import mcnemar_exact, wilson_interval
from copra.report.comparisons import compare_correct
from helpers.evaluations import write_evaluation
from helpers.tiny import TRAINING, tiny_config

RIGHT = {
    "llama@0+cot": [True] * 30 + [False] * 10,
    "llama@1+cot": [True] * 32 + [False] * 8,
    "llama@0+cot+coconut": [False] * 4 + [True] * 34 + [False] * 2,
    "llama@1+cot+coconut": [False] * 3 + [True] * 35 + [False] * 2,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a config and the evaluations of its two recipes, two seeds each."""
    monkeypatch.chdir(tmp_path)
    coconut = {"kind": "coconut", "max_latent_stage": 2, "training": TRAINING}
    config = tiny_config(steps__coconut=coconut, recipes=[["cot"], ["cot", "coconut"]], seeds=[0, 1])
    Path("config.yaml").write_text(yaml.safe_dump(config))
    results = tmp_path / "results" / "config"
    for node, right in RIGHT.items():
        flops = 500 if "coconut" in node else 1000
        write_evaluation(results / "evaluations", node, right, flops=flops)
    times = [{"node": node, "seconds_per_answer": 0.02} for node in RIGHT if "@0" in node]
    timed = pandas.DataFrame(times).assign(batch=1, length="natural", prompt="whole")
    timed.to_parquet(results / "latency.parquet")
    return results


def printed(capsys, *words, status=0):
    assert main([*map(str, words)]) == status
    found = capsys.readouterr()
    return found.err if status else found.out


def test_recipes_are_compared_over_all_their_seeds(place, capsys):
    out = printed(capsys, "compare", "llama+cot", "llama+cot+coconut")
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    shares = [sum(RIGHT[node]) / 40 for node in RIGHT]
    accuracies = [sum(shares[:2]) / 2, sum(shares[2:]) / 2]
    ends = [wilson_interval(40 * accuracy, 40) for accuracy in accuracies]
    cells = [
        f"{100 * a:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        for a, (low, high) in zip(accuracies, ends, strict=True)
    ]
    assert ["accuracy (%)", *cells] in lines
    assert ["FLOPs per answer", "1 k", "500", "0.50"] in lines
    assert ["ms per answer", "20.0", "20.0", "1.00"] in lines
    correct = [[RIGHT[f"llama@{seed}+cot{more}"] for seed in (0, 1)] for more in ("", "+coconut")]
    arrays = [pandas.DataFrame(each).astype(float).to_numpy() for each in correct]
    expected = compare_correct(*arrays, paired=True, fixed_a=False, fixed_b=False)
    interval = f"[{100 * expected['recipe_low']:+.1f}, {100 * expected['recipe_high']:+.1f}]"
    assert f"trained again: 95% interval {interval}, p {expected['recipe_p']:.3f}" in out
    assert f"first minus second: {100 * expected['difference']:+.1f} points" in out


def test_two_models_are_compared_on_every_question(place, capsys):
    a, b = "llama@0+cot", "llama@0+cot+coconut"
    folders = [place / "evaluations" / node for node in (a, b)]
    by_name, by_folder = printed(capsys, "compare", a, b), printed(capsys, "compare", *folders)
    p = mcnemar_exact(RIGHT[a], RIGHT[b])
    counts = "of 40 questions both are right on 26, only the first on 4, only the second on 8, neither on 2"
    for out in (by_name, by_folder):
        assert f"p {p:.3f}" in out
        assert counts in out
        assert "trained again: unknown, since a recipe has one seed" in out
        assert out.count("gold: 1; first: 1; second: 1") == 6
    assert "ms per answer" in by_name
    assert "ms per answer" not in by_folder
    assert printed(capsys, "compare", a, b, "--rows", 5).count("gold: ") == 9
    assert "gold: " not in printed(capsys, "compare", a, b, "--rows", 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama+cot", "llama+cott"], "no recipe or model of config.yaml (did you mean 'llama+cot'?)"),
        (["llama+cot", "llama+cot"], "llama+cot: is both"),
        (["llama+cot", "llama@0"], "llama@0: is not evaluated yet"),
        (["llama+cot", "svamp/llama+cot"], "svamp/llama+cot: is not evaluated yet"),
        (["a", "b", "--config", "none.yaml"], "no config that could have a recipe of this name"),
    ],
)
def test_what_cannot_be_compared_is_said(place, capsys, words, message):
    assert message in printed(capsys, "compare", *words, status=1)


ROWS = [
    ("llama+cot", 0.95, 12e6, 1.0, 0.04, 700_000, False),
    ("llama+cot+coconut", 0.97, 10e6, 0.8, 0.03, 700_000, True),
    ("llama+cot+half", 0.90, 6e6, 0.5, 0.02, 350_000, True),
]


@pytest.fixture
def table(place):
    columns = ["recipe", "accuracy", "flops", "flops_ratio", "seconds_batch_1", "checkpoint_bytes", "pareto"]
    rows = pandas.DataFrame(ROWS, columns=columns)
    rows = rows.assign(seed="all", low=rows["accuracy"] - 0.02, high=rows["accuracy"] + 0.02)
    (place / "tables").mkdir()
    seeds = rows.assign(seed="0", accuracy=1.0)
    pandas.concat([rows, seeds]).to_parquet(place / "tables" / "accuracy_vs_flops.parquet")


@pytest.mark.parametrize(
    ("budget", "recipes"),
    [
        ([], ["llama+cot+coconut", "llama+cot", "llama+cot+half"]),
        (["--flops", "11M"], ["llama+cot+coconut", "llama+cot+half"]),
        (["--ratio", "0.5"], ["llama+cot+half"]),
        (["--latency", "35", "--bytes", "400k"], ["llama+cot+half"]),
        (["--rows", "1"], ["llama+cot+coconut"]),
    ],
)
def test_the_most_accurate_under_a_budget(table, capsys, budget, recipes):
    lines = printed(capsys, "best", *budget).splitlines()
    assert [line.split()[0] for line in lines[1:]] == recipes
    if recipes[0] == "llama+cot+coconut":
        cells = re.split(r"  +", lines[1])
        assert cells[1:] == ["97.0 [95.0, 99.0]", "10 M", "0.80", "30.0", "700 k", "yes"]


@pytest.mark.parametrize(
    ("budget", "status", "message"),
    [
        (["--flops", "1M"], 1, "the least that is left, llama+cot+half, takes 6 M"),
        (["--parameters", "1G"], 1, "this run has not measured parameters"),
        (["--flops", "-3"], 2, "'-3' is not a positive number such as 8e6 or 8M"),
    ],
)
def test_a_budget_that_leaves_nothing_is_said(table, capsys, budget, status, message):
    if status == 2:
        with pytest.raises(SystemExit):
            main(["best", *budget])
        assert message in capsys.readouterr().err
    else:
        assert message in printed(capsys, "best", *budget, status=status)


def test_without_a_table_best_says_what_makes_it(place, capsys):
    assert "accuracy_vs_flops.parquet: is not there. Run snakemake" in printed(capsys, "best", status=1)
