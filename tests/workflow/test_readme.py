"""README.md and docs/: the diagram is the rule graph, and make targets exist. Links: tests/test_docs.py."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def test_every_make_target_that_the_pages_name_exists():
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
    assert {"demo", "test", "help", "report"} <= targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
