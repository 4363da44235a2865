"""The README says what is so: its diagram is the rule graph, its links and configs exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.workflow
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
    shown = re.search(r"```mermaid\n(.*?)```", README, re.DOTALL)[1]
    assert set(re.findall(r"(\w+) --> (\w+)", shown)) == expected


def test_links_and_files_that_the_readme_names_exist():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    files = re.findall(r"`((?:config|src|workflow|benchmarks)/[\w./-]+)`", README)
    assert links
    assert files
    assert [name for name in [*links, *files] if not (ROOT / name).exists()] == []


def test_every_make_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test", "help", "report"} <= targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
