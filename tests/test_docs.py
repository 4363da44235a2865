"""Links, paths, commands and configs in README.md and the other pages exist and are legal."""

import re
from pathlib import Path

import pytest
import yaml

from copra.cli import COMMANDS
from copra.experiment.config import parse
from copra.experiment.recipes import build_tree

ROOT = Path(__file__).parents[1]
FRONT = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*FRONT, *(ROOT / name for name in ("CONTRIBUTING.md", "results/README.md", "config/README.md"))]
MAX_README_LINES = 170

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:\w+=\S* )*copra ([a-z][\w-]*)", re.MULTILINE)
CONFIG_PATH = re.compile(r"(?<![\w/.-])(?:config|profiles)/[\w./-]+")
SOURCE_PATH = re.compile(r"^(?:src|workflow|benchmarks|tests)/[\w./-]*$")

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
def test_every_config_profile_and_source_path_exists(page):
    code = read(page)[1]
    paths = {path.rstrip(".") for text in code for path in CONFIG_PATH.findall(text)}
    paths |= {text for text in code if SOURCE_PATH.match(text)}
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@every_page
def test_every_command_is_one_of_copras(page):
    named = {name for text in read(page)[1] for name in COMMAND.findall(text)}
    assert sorted(named - set(COMMANDS)) == []


def test_the_checks_see_what_they_check():
    code = [text for page in FRONT for text in read(page)[1]]
    assert {"check", "plan", "status"} <= {name for text in code for name in COMMAND.findall(text)}
    assert "config/gpt2.yaml" in {path for text in code for path in CONFIG_PATH.findall(text)}
    assert any(SOURCE_PATH.match(text) for text in code)
    assert "several-gpus-for-one-training" in anchors(ROOT / "docs/precision-and-memory.md")


def test_readme_is_short_and_every_page_is_listed():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(LINK.findall((ROOT / "docs/README.md").read_text())) == pages


@pytest.mark.parametrize("block", yaml_blocks())
def test_every_yaml_block_is_legal(block):
    config = yaml.safe_load(block)
    assert isinstance(config, dict)
    parse(config if "task" in config else _completed(config))


def test_the_readmes_experiment_is_legal_down_to_its_recipes():
    [block] = [block for kind, block in FENCE.findall((ROOT / "README.md").read_text()) if kind == "yaml"]
    tree = build_tree(parse(yaml.safe_load(block)))
    assert "smollm2+layers-quarter+cot@0+coconut" in tree.nodes


def _completed(fragment):
    """A legal config around a fragment such as `steps` or `curves`."""
    rest = {
        "task": "sums",
        "tasks": {"sums": {"kind": "word_sums"}},
        "base": "llama",
        "bases": {"llama": {"path": "folder"}},
        "steps": {"cot": {"kind": "cot", "training": {"steps": 1}}},
        "recipes": [["cot"]],
    }
    return {**rest, **fragment}
