"""Links, paths, configs and code in README.md and the other pages exist, are legal and run.

Their commands: tests/workflow/test_pages.py. Links and anchors of the site: `make docs`.
"""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml

from copra.cli import COMMANDS
from copra.experiment.config import json_schema, parse
from copra.experiment.recipes import build_tree
from copra.methods import METHODS
from copra.report.finding import finding
from copra.report.summary import five_columns
from copra.schema.metrics import Metric
from copra.tasks import TASKS
from copra.utils.files import read_parquet

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRONT = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES = [
    *FRONT,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "config/README.md")),
]
MAX_README_LINES = 150

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:\w+=\S* )*copra ([a-z][\w-]*)", re.MULTILINE)
KEY = re.compile(
    r"(?:((?:compute|evaluation|importance|latency|training)\.(?!jsonl)[\w.]+)|([a-z_]+): (?!\{kind))"
)
PATH = re.compile(r"(?<![\w/.-])(?:config|profiles|src|workflow|benchmarks|tests|docs)/[\w./-]*")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def read(page):
    """The text of a page, and its code: the fenced blocks and the code spans outside of them."""
    text = page.read_text()
    prose = FENCE.sub("", text)
    return prose, [*(block for _, block in FENCE.findall(text)), *CODE_SPAN.findall(prose)]


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    found = []
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in found)
        found.append(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def yaml_blocks():
    """Every fenced YAML block of README.md and docs/, with a name for the test."""
    return [
        pytest.param(block, id=f"{page.name}-{number}")
        for page in FRONT
        for number, block in enumerate(b for kind, b in FENCE.findall(page.read_text()) if kind == "yaml")
    ]


@cache
def keys():
    """All keys of a config, wherever they may be."""
    schema = json_schema()
    return {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", ())}


@every_page
def test_every_relative_link_and_anchor_exists(page):
    missing = []
    for link in LINK.findall(read(page)[0]):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@every_page
def test_every_path_of_the_repository_exists(page):
    paths = {path.rstrip(".") for text in read(page)[1] for path in PATH.findall(text)}
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@every_page
def test_every_command_is_one_of_copras(page):
    named = {name for text in read(page)[1] for name in COMMAND.findall(text)}
    assert sorted(named - set(COMMANDS)) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", FRONT, ids=lambda page: page.name)
def test_every_key_of_a_config_exists(page):
    named = [match[1] or match[2] for match in map(KEY.match, CODE_SPAN.findall(read(page)[0])) if match]
    assert [name for name in named if not keys().issuperset(name.split("."))] == []


def test_the_readme_names_all_tasks_methods_and_metrics():
    spans = set(CODE_SPAN.findall((ROOT / "README.md").read_text()))
    assert {*TASKS, *METHODS, *get_args(Metric)} - spans == set()


def test_the_checks_see_what_they_check():
    code = [text for page in FRONT for text in read(page)[1]]
    assert {"check", "plan", "status"} <= {name for text in code for name in COMMAND.findall(text)}
    assert {"config/gpt2.yaml", "src/copra/"} <= {path for text in code for path in PATH.findall(text)}
    assert "several-gpus-for-one-training" in anchors(ROOT / "docs/precision-and-memory.md")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_every_page_is_in_the_navigation_of_the_site_and_on_its_first_page_in_the_same_order():
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    first, *others = names(project["nav"])
    assert first == "README.md"
    assert sorted(others) == sorted(page.name for page in DOCS.glob("*.md") if page.name != first)
    assert re.findall(r"^- \[.+?\]\((.+?)\)", (DOCS / first).read_text(), re.MULTILINE) == others


def names(navigation):
    """The file names in a navigation, in order."""
    if isinstance(navigation, str):
        return [navigation]
    entries = navigation.values() if isinstance(navigation, dict) else navigation
    return [name for entry in entries for name in names(entry)]


@pytest.mark.parametrize("block", yaml_blocks())
def test_every_yaml_block_is_legal(block):
    config = yaml.safe_load(block)
    assert isinstance(config, dict)
    parse(config if "task" in config else _completed(config))


def test_the_readmes_experiment_is_legal_down_to_its_recipes():
    [block] = [block for kind, block in FENCE.findall((ROOT / "README.md").read_text()) if kind == "yaml"]
    tree = build_tree(parse(yaml.safe_load(block)))
    assert "smollm2+drop-quarter+cot@0+coconut" in tree.nodes


def _completed(fragment):
    """A legal config around a fragment such as `steps` or `curves`, whose first task is trained on."""
    rest = {
        "task": next(iter(fragment.get("tasks", ["sums"]))),
        "tasks": {"sums": {"kind": "word_sums"}},
        "base": "llama",
        "bases": {"llama": {"path": "folder"}},
        "steps": {"cot": {"kind": "cot", "training": {"steps": 1}}},
        "recipes": [["cot"]],
    }
    return {**rest, **fragment}


def test_the_columns_and_the_finding_are_those_of_the_table_beside_the_page():
    page = (DOCS / "results.md").read_text()
    blocks = re.findall(r"<!-- five columns: ([\w-]+) -->\n\n```text\n(.*?)\n```", page, re.DOTALL)
    assert blocks
    for name, text in blocks:
        table = read_parquet(DOCS / "data" / name / "accuracy_vs_flops.parquet")
        assert text.split("\n") == five_columns(table)
    table = read_parquet(DOCS / "data" / "default" / "accuracy_vs_flops.parquet")
    assert finding(table) in " ".join((ROOT / "README.md").read_text().split())
