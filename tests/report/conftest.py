from functools import partial

import pytest

from helpers import evaluations


@pytest.fixture
def write_evaluation(tmp_path):
    """Writes evaluations below the test's folder: see `helpers.evaluations`."""
    return partial(evaluations.write_evaluation, tmp_path)


@pytest.fixture
def recipe():
    """The settings of a recipe that ends at the given nodes."""

    def make(name, *nodes, pruning="dense", method="cot", base="llama", kind="cot"):
        order = name.split("+", 1)[1].replace("+", " > ")
        return {
            "recipe": name,
            "base": base,
            "pruning": pruning,
            "method": method,
            "order": order,
            "kind": kind,
            "nodes": list(nodes),
        }

    return make
