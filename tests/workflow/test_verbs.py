"""The parts of the workflow that only some configs need, and the code behind each verb."""

import re
from dataclasses import replace

import pytest

from copra.utils.files import read_json, read_parquet
from copra.utils.fingerprint import closure
from helpers.copied_code import copy_code
from helpers.warm import warm_copra

COCONUT = "llama@0+cot+drop-1+groups-1+coconut"
CONTRASTS = {"chain": {"plus": ["llama+cot"], "minus": ["llama+cot+no_cot"]}}
SOURCES = ["own", "other", "mean", "zeros", "drop_last"]
LATENCY = {"questions": 1, "batch_size": 2, "repetitions": 1, "forced_tokens": 2}
ACCURACY = {
    "Computing table accuracy_vs_flops: accuracy against FLOPs",
    "Writing table accuracy_vs_flops as CSV, Markdown and LaTeX",
    "Drawing figure accuracy_vs_flops: accuracy against FLOPs",
}


# Modules of the command line, which do no part of any result.
STARTING = {
    "copra.cli",
    "copra.commands.registry",
    "copra.commands.resources",
    "copra.utils.ending",
    "copra.utils.forking",
    "copra.utils.gpu",
    "copra.utils.out_of_memory",
    "copra.utils.processes",
    "copra.utils.quiet",
}
# At the end of each of copra's processes: which verb it was, and which of copra's modules it imported.
AUDIT = """
import atexit, os, pathlib, sys

def note():
    if pathlib.Path(sys.argv[0]).name == "copra":
        modules = sorted(name for name in sys.modules if name.split(".")[0] == "copra")
        folder = pathlib.Path(__file__).parent / "audit" / sys.argv[1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(os.getpid())).write_text(" ".join(modules))

atexit.register(note)
"""


@pytest.fixture(scope="module")
def timed(finished, tmp_path_factory):
    """The finished run after time was measured too."""
    run = finished.copied(tmp_path_factory.mktemp("timed") / "run")
    run.configure(latency=LATENCY)
    assert run.would_run() == {"Measuring seconds per answer"} | ACCURACY
    run.snakemake("results/config/tables/accuracy_vs_flops.csv")
    return run


def test_measured_times_are_in_the_table(timed):
    table = read_parquet(timed.results / "tables" / "accuracy_vs_flops.parquet")
    assert list(table["recipe"]) == ["llama+cot", "llama+cot+no_cot", "llama+cot+drop-1+groups-1+coconut"]
    assert table[["seconds_batch_1", "seconds_batched"]].gt(0).all(axis=None)


def test_a_change_of_one_model_measures_all_again(timed, tmp_path):
    """Times mean something only beside each other."""
    changes = {"latency": LATENCY, "steps__no_cot__training__learning_rate": 1e-3}
    found = timed.with_config(tmp_path / "config.yaml", **changes).would_run()
    assert found >= {"Training llama@0+cot+no_cot", "Measuring seconds per answer"} | ACCURACY
    slower = timed.with_config(tmp_path / "slower.yaml", name="config", latency={**LATENCY, "repetitions": 2})
    assert slower.would_run() >= {"Measuring seconds per answer"} | ACCURACY
    assert not [message for message in slower.would_run() if message.startswith(("Training", "Evaluating"))]


@pytest.fixture(scope="module")
def looked_into(finished, tmp_path_factory):
    """The finished run after its latents were looked into, recipes compared by a contrast, and models asked
    rows of a file, three of which they were trained on."""
    run = finished.copied(tmp_path_factory.mktemp("looked into") / "run")
    learned = read_parquet(run.results / "data" / "sums" / "train.parquet")["question"][:3]
    questions = [*learned, *(f"Ann has {number} apples. How many?" for number in range(1, 9))]
    (run.folder / "told.csv").write_text("\n".join(["asked,gold", *(f"{asked},7" for asked in questions)]))
    columns = {"question": "asked", "answer": "gold"}
    evaluation = {"evaluation__latents": [0], "evaluation__lens": 2, "evaluation__starts": True}
    evaluation["evaluation__latents_from"] = SOURCES
    run.configure(
        **evaluation,
        contrasts=CONTRASTS,
        primary="chain",
        tasks__told={"kind": "rows", "test": "told.csv", "columns": columns},
        evaluation__tasks=["told"],
    )
    assert f"Evaluating told/{COCONUT}" in run.would_run()
    run.snakemake()
    return run


def test_latents_are_looked_into_where_it_is_asked_for(looked_into):
    tables, figures = looked_into.results / "tables", looked_into.results / "figures"
    swept = read_parquet(tables / "accuracy_vs_latents.parquet")
    assert list(zip(swept["latents"], swept["trained"], strict=True)) == [(0, False), (1, True)]
    metrics = read_json(looked_into.results / "evaluations" / COCONUT / "metrics.json")
    assert swept["accuracy"][1] == metrics["accuracy"]
    assert swept["flops"][1] == metrics["flops"]["total"]
    assert len(read_parquet(tables / "latent_lens.parquet")) == 2
    swapped = read_parquet(tables / "latent_sources.parquet")
    assert list(swapped["source"]) == SOURCES
    assert swapped["accuracy"][0] == metrics["accuracy"]
    # It was trained with one latent.
    assert swapped["accuracy"][4] == swept["accuracy"][0]
    assert (figures / "latent_sources.png").stat().st_size > 0
    assert (figures / "accuracy_vs_latents.png").stat().st_size > 0
    assert (figures / "latent_lens" / f"{COCONUT}.png").stat().st_size > 0
    assert looked_into.would_run() == set()


def test_contrasts_and_starts_are_in_tables_where_they_are_asked_for(looked_into):
    tables = looked_into.results / "tables"
    accuracies = read_parquet(tables / "accuracy_vs_flops.parquet").set_index("recipe")
    (contrast,) = read_parquet(tables / "contrasts.parquet").to_dict("records")
    difference = accuracies["accuracy"]["llama+cot"] - accuracies["accuracy"]["llama+cot+no_cot"]
    assert contrast["value"] == pytest.approx(difference)
    assert contrast["primary"]
    assert (looked_into.results / "figures" / "contrasts.png").stat().st_size > 0
    assert list(accuracies["start"]) == ["llama", "llama+cot", "llama+cot+drop-1+groups-1"]
    assert accuracies["start_accuracy"].isna().tolist() == [True, False, False]
    assert accuracies["start_accuracy"]["llama+cot+no_cot"] == accuracies["accuracy"]["llama+cot"]
    assert accuracies["healing_steps"].tolist() == [0, 0, 0]


def test_other_tasks_are_asked_without_what_a_model_was_trained_on(looked_into):
    """Of a task with a test split alone."""
    assert {path.name for path in (looked_into.results / "data" / "told").iterdir()} == {
        "test.json",
        "test.parquet",
    }
    table = read_parquet(looked_into.results / "tables" / "accuracy_by_task.parquet")
    recipes = ["llama+cot", "llama+cot+no_cot", "llama+cot+drop-1+groups-1+coconut"]
    expected = [("sums", name, 60, 0) for name in recipes] + [("told", name, 8, 3) for name in recipes]
    found = table[["task", "recipe", "n", "seen_in_training"]]
    assert list(found.itertuples(index=False, name=None)) == expected
    metrics = read_json(looked_into.results / "evaluations" / "told" / COCONUT / "metrics.json")
    row = table.iloc[-1]
    assert (row["accuracy"], row["flops"]) == (metrics["accuracy"], metrics["flops"]["total"])
    assert row["flops_ratio"] == row["flops"] / table.iloc[3]["flops"]
    assert (looked_into.results / "figures" / "accuracy_by_task.svg").stat().st_size > 0
    # Other questions of that task change no evaluation on the models' own.
    file = looked_into.folder / "told.csv"
    before = file.read_bytes()
    file.write_bytes(before + b"\nAnn has 9 apples. How many?,9")
    found = looked_into.would_run()
    file.write_bytes(before)
    ends = ("llama@0+cot", "llama@0+cot+no_cot", COCONUT)
    assert found == {
        "Preparing the test split of task told",
        *(f"Evaluating told/{end}" for end in ends),
        "Computing table accuracy_by_task: accuracy on each task",
        "Writing table accuracy_by_task as CSV, Markdown and LaTeX",
        "Drawing figure accuracy_by_task: accuracy on each task",
    }


@pytest.fixture(scope="module")
def audits(finished, tmp_path_factory):
    """For each verb of the workflow the modules of copra that its processes imported, for every kind
    of table and figure."""
    code = copy_code(tmp_path_factory.mktemp("audited") / "code", AUDIT)
    run = replace(finished, code=code).empty(code.with_name("run"))
    run.configure(
        steps__coconut__first_stage=2,
        steps__int8={"kind": "quantize", "weights": "int8"},
        steps__shown={"kind": "few_shot", "num_fewshot": 1},
        recipes=[["coconut", "drop-1", "groups-1", "int8"], ["cot", "shown"]],
        reference="llama+cot+shown",
        evaluation={
            "max_new_tokens": 2,
            "latents": [0],
            "lens": 2,
            "limit": 4,
            "starts": True,
            "latents_from": ["other"],
        },
        contrasts={"shown": {"plus": ["llama+cot+shown"], "minus": ["llama+coconut+drop-1+groups-1+int8"]}},
        latency=LATENCY,
        curves={"layers": {"model": "llama+cot", "unit": "layers", "metrics": ["cosine"], "remove": [1]}},
    )
    with warm_copra(code / "src") as environment:
        replace(run, environment=environment).snakemake()
    verbs = (code / "src" / "audit").iterdir()
    return {
        verb.name: {name for note in verb.iterdir() for name in note.read_text().split()} for verb in verbs
    }


def test_the_fingerprint_covers_all_modules_that_a_verb_imports(audits, code):
    rules = "".join(file.read_text() for file in (code / "workflow" / "rules").iterdir())
    # `copra convert` needs other programs; test_converted_models.py runs it.
    assert {*audits, "convert"} == set(re.findall(r"copra ([\w-]+) --settings", rules))
    for command, imported in audits.items():
        module = "copra.commands." + command.replace("-", "_")
        assert module in imported
        assert imported - STARTING <= closure(module), command


def test_a_pruning_that_needs_no_scores_is_planned_without_them(run):
    run.configure(recipes=[["cot"], ["cot", "lowest-1", "no_cot"]])
    plan = "results/config/plans/llama@0+cot+lowest-1.json"
    run.snakemake(plan)
    assert read_json(run.folder / plan)["removed"]
    assert not [message for message in run.would_run() if message.startswith("Scoring")]


def test_a_config_file_on_the_command_line_stands_alone(run):
    (run.folder / "other.yaml").write_text("task: none\n")
    printed = run.snakemake("-n", "--configfile", str(run.folder / "other.yaml"), succeeds=False)
    assert "other.yaml: recipes: this key is missing" in printed
