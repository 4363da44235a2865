"""The commands of README.md and the other pages run, as far as that is cheap; the diagram is the rule graph.

Links, paths and configs of the pages: tests/test_docs.py.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pandas
import pytest
from snakemake.cli import get_argument_parser

from helpers.copied_code import copy_code

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
PROGRAM = re.compile(r"(copra|snakemake|make|python|pip|pytest|docker|apptainer|hf|tar) ")
STAND_INS = {"FILE": "config.yaml", "FILE...": "config.yaml", "DIR": "elsewhere", "...": ""}

NOT_RUN = {
    ". .venv/bin/activate": "changes the shell that reads it",
    "hf auth login": "asks for a token",
    "pip install": "changes the environment of the tests",
    "docker ": "needs Docker",
    "apptainer build": "needs Apptainer and an image",
    "tar xf rest.tar": "is the system's own",
    "mkdir -p ": "is the system's own",
    "copra train config.yaml llama@0+cot": "fails, as the page shows (below)",
    "copra ask llama+cot+coconut": "needs the model; tests/commands/test_ask.py asks one",
    "copra publish llama+cot+coconut": "needs the model; tests/commands/test_publish.py publishes one",
    "copra gguf": "needs the model; tests/models/test_gguf_files.py writes files",
    "lm_eval run": "needs the harness; tests/models/test_lm_eval.py runs it",
    "copra executorch": "needs the model; tests/models/test_executorch_files.py writes folders",
    "python -c": "needs a file; tests/models/test_gguf_files.py and test_executorch_files.py read some",
    "copra init": "needs the rows; tests/experiment/test_starter.py starts with some",
    "copra run": "makes a run; test_copra_run.py makes several",
    "copra best": "needs a finished run; tests/commands/test_compare.py asks one",
    "copra compare llama+cot": "needs the recipes; tests/commands/test_compare.py compares two",
    "snakemake --profile profiles/slurm": "tests/slurm runs it",
    "snakemake --profile profiles/kubernetes": "tests/kubernetes runs it",
    "snakemake copra_all": "test_module.py runs it",
    "python benchmarks/": "needs a GPU or hours; tests/benchmarks runs small ones",
    "pytest ": "a test does not run other tests",
}


def commands() -> dict[str, bool]:
    """Return each command of the pages, without comment, variables and the program's folder; True if a block
    has it, False if a text mentions it."""
    found: dict[str, bool] = {}
    for page in PAGES:
        text = page.read_text()
        lines = []
        for kind, block in BLOCK.findall(text):
            if kind in ("sh", "console"):
                lines += re.findall(r"^(?:\$ )(.*)$" if kind == "console" else r"^(.+)$", block, re.MULTILINE)
        typed = [part.strip() for line in lines for part in re.sub(r" +#.*", "", line).split("&&")]
        spans = [plain(span) for span in SPAN.findall(BLOCK.sub("", text)) if "<" not in span]
        mentioned = filter(PROGRAM.match, spans)
        found = dict.fromkeys(mentioned, False) | found | dict.fromkeys(map(plain, typed), True)
    return found


def plain(command: str) -> str:
    return re.sub(r"^(?:\w+=\S* )*(?:\S+/(?=\w))?", "", command)


def words_of(command: str) -> tuple[str, list[str]]:
    """Return the program and the arguments of a command, without redirection."""
    program, *arguments = shlex.split(command.split(" > ")[0])
    arguments = [STAND_INS.get(word, word) for word in arguments]
    return program, [word for word in arguments if word]


def different(found: dict[str, bool]) -> dict[str, bool]:
    """Return the commands without those that are another one once stand-ins are put in their places."""
    names = {str((words_of(command), is_run)): command for command, is_run in reversed(found.items())}
    return {command: is_run for command, is_run in found.items() if command in names.values()}


COMMANDS = different(commands())


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of what a clone has, with the README's experiment as mine.yaml."""
    folder = copy_code(tmp_path_factory.mktemp("pages") / "clone")
    for name in ("config.yaml", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (mine,) = [block for kind, block in BLOCK.findall((ROOT / "README.md").read_text()) if kind == "yaml"]
    (folder / "mine.yaml").write_text(mine)
    return folder


def run(clone: Path, *arguments: str, status: int = 0) -> str:
    """Run a command in the clone; returns what it printed."""
    done = subprocess.run(
        arguments,
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(clone / "src"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.startswith(tuple(NOT_RUN))])
def test_every_command_runs(clone, command):
    """`snakemake` as a dry run and `make` with -n; what a text mentions is parsed, or asked for its help."""
    program, arguments = words_of(command)
    if program == "make":
        run(ROOT, "make", "-n", *arguments)
    elif program == "copra":
        mentioned = len(arguments) == 1 and not COMMANDS[command]
        run(clone, sys.executable, "-m", "copra.cli", *arguments, *(["--help"] if mentioned else []))
    elif COMMANDS[command]:
        run(clone, sys.executable, "-m", program, "-n", *arguments)
    else:
        assert program == "snakemake"
        get_argument_parser().parse_args(arguments)


@pytest.mark.parametrize(("start", "status"), [("copra train", 1), ("copra plan", 0)])
def test_the_page_shows_what_a_command_prints(clone, start, status):
    text = (ROOT / "docs" / "running.md").read_text()
    command, shown = re.search(rf"^\$ ({start} .*)\n((?s:.*?))^```$", text, re.MULTILINE).groups()
    printed = run(clone, sys.executable, "-m", "copra.cli", *words_of(command)[1], status=status)
    left_out = "(?s:.*)".join(map(re.escape, shown.split("...\n")))
    assert re.fullmatch(left_out, printed), printed


def test_every_exception_is_one():
    assert [start for start in NOT_RUN if not any(each.startswith(start) for each in COMMANDS)] == []


def test_the_code_of_the_python_page_runs_on_the_results_of_the_tiny_experiment(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    space: dict[str, Any] = {}
    blocks = BLOCK.findall((ROOT / "docs" / "python.md").read_text())
    for block in [block for kind, block in blocks if kind == "python"]:
        block = block.replace("results/default", str(finished.results))
        exec(block.replace("+cot+coconut", "+cot+drop-1+groups-1+coconut"), space)
    assert len(space["table"]) == 20
    # Without copra the model says what it says in its evaluation.
    said = space["tokenizer"].decode(space["answer"][0, space["prompt"].shape[1] :], skip_special_tokens=True)
    evaluation = finished.results / "evaluations" / space["folder"].name / "predictions.parquet"
    predicted = pandas.read_parquet(evaluation).set_index("question")["generated"]
    assert said.startswith(predicted[space["rows"][0].question].strip()[:24])
    assert space["smaller"].config.num_hidden_layers == 1
    assert "llama@0+cot" in space["tree"].nodes


def test_the_notebook_runs_on_the_results_of_the_tiny_experiment_and_has_no_outputs(
    finished, tmp_path, monkeypatch
):
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]
    for folder in ("docs", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "results" / "default-quick").symlink_to(finished.results)
    monkeypatch.chdir(tmp_path / "docs")
    matplotlib.use("agg")
    space: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]).replace("+cot+coconut", "+cot+drop-1+groups-1+coconut"), space)
    space["plt"].close("all")
    assert len(space["recipes"]) == len(space["axes"].containers) == 3
    assert len(space["reply"].lens) == space["reply"].latents > 0
    assert [reply.question for reply in space["replies"]] == [row.question for row in space["rows"][:8]]
    # The first 8 tokens are those of the run, which asked for no more.
    said = space["predictions"].merge(space["stored"], on="question", suffixes=("", "_stored"))
    assert len(said) == 20
    assert all(map(str.startswith, said["generated"], said["generated_stored"].str.rstrip()))
    assert len(space["both"]) == 60


def test_the_diagram_is_the_rule_graph_of_the_default_experiment():
    graph = subprocess.run(
        [sys.executable, "-m", "snakemake", "--rulegraph", "mermaid-js"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", graph))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", graph)}
    # `all` asks for everything; the diagram shows what leads to tables and figures.
    expected = {(before, after) for before, after in edges if after != "all"}
    running = (ROOT / "docs/running.md").read_text()
    shown = re.search(r"```mermaid\n(.*?)```", running, re.DOTALL)[1]
    assert set(re.findall(r"(\w+) --> (\w+)", shown)) == expected
