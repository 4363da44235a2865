"""The registry of tables and figures, against the commands that make them."""

import shlex
from pathlib import Path
from typing import get_args

from copra.commands import figure, table
from copra.experiment.config import parse
from copra.experiment.outputs import FIGURES, TABLES, figure_files, table_files
from copra.experiment.recipes import build_tree
from copra.experiment.workflow import Workflow
from copra.utils.files import read_yaml

ROOT = Path(__file__).parents[2]


def lab(**changes) -> Workflow:
    """The pruning laboratory, which has every kind of table and figure once latents are looked into and
    another task is asked."""
    config = read_yaml(ROOT / "config" / "pruning-lab.yaml")
    asked = {"stages": True, "latents": [0], "lens": 1, "tasks": ["longer"]}
    config["evaluation"] = {**config.get("evaluation", {}), **asked}
    config["tasks"]["longer"] = {"kind": "word_sums", "min_steps": 5}
    first, second, *_ = build_tree(parse(config)).recipes
    config["contrasts"] = {"ours": {"plus": [first.recipe], "minus": [second.recipe]}}
    config["evaluation"]["latents_from"] = ["other"]
    config["conversions"] = {"recipes": [first.recipe], "formats": ["executorch-f32"]}
    return Workflow(config | changes, "lab.yaml")


def options(output, workflow, subject="") -> dict[str, str]:
    """The options that name its sources, where files are where the workflow puts them."""
    small, large = (output.files(workflow, subject, large=large) for large in (False, True))
    words = shlex.split(output.options(workflow, subject, small, large))
    return dict(zip(words[::2], words[1::2], strict=True))


def test_each_table_and_figure_is_one_that_its_command_makes():
    assert set(TABLES) == set(table.TABLES) == set(get_args(table.Kind))
    assert set(FIGURES) == set(figure.FIGURES) == set(get_args(figure.Kind))


def test_all_that_a_run_asks_for_is_listed():
    workflow = lab()
    assert {Path(path).stem for path in table_files(workflow)} == set(TABLES)
    figures = [workflow.within("figures", path) for path in figure_files(workflow)]
    assert {path.split("/")[0].split(".")[0] for path in figures} == set(FIGURES)


def test_options_name_a_file_or_the_folder_above_files():
    workflow = lab()
    folder = workflow.folder
    assert options(TABLES["accuracy_vs_flops"], workflow) == {
        "--evaluations": f"{folder}/evaluations",
        **({"--latency": f"{folder}/latency.parquet"} if workflow.timed else {}),
    }
    assert options(TABLES["accuracy_by_task"], workflow) == {"--evaluations": f"{folder}/evaluations"}
    node, objective = "llama@0+cot", "cot"
    assert options(FIGURES["head_importance"], workflow, f"{node}/{objective}") == {
        "--input": f"{folder}/scores/{node}/{objective}/passes.parquet",
        "--model": f"{folder}/models/{node}/copra.json",
    }
    assert options(FIGURES["training_curves"], workflow) == {"--input": f"{folder}/models"}


def test_starts_are_read_where_they_are_asked_for():
    workflow = lab(evaluation={"starts": True})
    assert options(TABLES["accuracy_vs_flops"], workflow)["--models"] == f"{workflow.folder}/models"
    small = TABLES["accuracy_vs_flops"].files(workflow, "", large=False)
    assert len(small) == len(set(small))
    assert {workflow.within("evaluations", path).split("/")[0] for path in small} >= set(workflow.started)


def test_files_may_be_copies_elsewhere():
    workflow = lab()
    figure, subject = FIGURES["drop_orders"], "layers"
    small, large = (figure.files(workflow, subject, large=large) for large in (False, True))
    copies = ([f".snakemake/storage/s3/{path}" for path in paths] for paths in (small, large))
    words = shlex.split(figure.options(workflow, subject, *copies))
    assert words[words.index("--input") + 1] == f".snakemake/storage/s3/{workflow.folder}/scores"


def test_a_curve_without_scores_has_a_folder_all_the_same():
    """Its metrics need no data; the command asks for the folder."""
    curve = {"model": "llama+cot", "unit": "layers", "metrics": ["deepest"], "remove": [1]}
    workflow = lab(curves={"bare": curve})
    assert options(FIGURES["drop_orders"], workflow, "bare")["--input"] == "."
    assert options(TABLES["drop_orders"], workflow)["--scores"] == "."
