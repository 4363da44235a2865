"""The committed schema and configuration reference: those of the code as it is."""

import json
from pathlib import Path

import pytest

from copra.cli import main
from copra.experiment.config import json_schema
from copra.experiment.reference import config_reference

ROOT = Path(__file__).parents[2]
PRESETS = [ROOT / "config.yaml", *sorted((ROOT / "config").glob("*.yaml"))]


@pytest.mark.slow
def test_the_committed_schema_is_the_codes():
    """After a change of settings: copra schema > config/schema.json"""
    assert json.loads((ROOT / "config" / "schema.json").read_text()) == json_schema()


def test_the_committed_page_is_the_codes(capsys):
    """After a change of settings: copra schema --format markdown > docs/configuration.md"""
    assert main(["schema", "--format", "markdown"]) == 0
    assert (ROOT / "docs" / "configuration.md").read_text() == capsys.readouterr().out


@pytest.mark.slow
def test_all_keys_of_all_classes_are_on_the_page():
    page = config_reference(json_schema())
    for title, part in json_schema()["$defs"].items():
        section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        assert all(f"| `{key}` |" in section for key in part.get("properties", {}))


@pytest.mark.slow
def test_types_bounds_and_defaults_are_in_words():
    page = config_reference(json_schema())
    training = page.split("\n## Training\n")[1].split("\n## ")[0]
    assert "| `learning_rate` | number > 0 | `0.0001` | Peak learning rate. |" in training
    assert (
        "| `steps` | integer ≥ 1, ≤ 1,000,000,000 or null | `null` | Number of optimizer steps." in training
    )
    assert '| `select_best_by` | `loss`, `accuracy`, `last` | `"loss"` |' in training


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.name)
def test_editors_find_the_schema(file):
    """A config that a preset is laid over is no whole config, and has no such line."""
    first = file.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / named).resolve() == ROOT / "config" / "schema.json"
