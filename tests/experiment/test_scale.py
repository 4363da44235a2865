"""The work of what the Snakefile asks grows in step with the recipes: counted in calls, not in seconds."""

import cProfile
import importlib.util
import pstats
from pathlib import Path

import pytest

from copra.experiment.outputs import figure_files, figure_settings, table_files, table_settings
from copra.experiment.workflow import Workflow

FILE = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark of dry runs, for its config."""
    spec = importlib.util.spec_from_file_location("scale", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ask_everything(config) -> int:
    """Ask all that rules ask while a dry run plans; returns the number of nodes."""
    copra = Workflow(config, "config.yaml")
    assert table_files(copra)
    assert figure_files(copra)
    assert copra.artifacts()
    for name, node in copra.tree.nodes.items():
        assert copra.data(name, "train")
        assert copra.evaluate_settings(name)
        if node.kind == "train":
            assert copra.parent(name)
            assert not copra.teacher(name)
            assert copra.train_settings(name)
        if node.kind == "prune":
            assert copra.scores(name)
            assert copra.select_settings(name)
            assert copra.prune_settings(name)
    for name in ("accuracy_vs_flops", "before_fine_tuning"):
        assert table_settings(copra, name)
    for name in ("training_curves", "curriculum"):
        assert figure_settings(copra, name)
    return len(copra.tree.nodes)


@pytest.mark.slow
def test_twice_the_recipes_take_twice_the_work(benchmark):
    ask_everything(benchmark.config(20))  # What is worked out once a process: fingerprints of the code.
    nodes, calls = [], []
    for recipes in (100, 200, 400):
        config, profile = benchmark.config(recipes), cProfile.Profile()
        nodes.append(profile.runcall(ask_everything, config))
        calls.append(pstats.Stats(profile).total_calls)
    assert nodes == [5 * recipes + 12 for recipes in (100, 200, 400)]
    assert calls[2] - calls[1] <= 1.05 * 2 * (calls[1] - calls[0])
    # The checks of a step's numbers, a few lookups and the JSON of a node's settings, and nothing that goes
    # through the other nodes.
    assert (calls[2] - calls[1]) / (nodes[2] - nodes[1]) < 200
