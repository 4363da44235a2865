"""Plugins that cannot be used are errors that name the package, the entry point and what to do."""

import re

import pytest

from copra.schema import metrics
from copra.tasks.task import Task
from copra.utils import plugins
from copra.utils.errors import CopraError
from copra.utils.plugins import plugins_of
from helpers.lab import install

TASK = """
from typing import Literal
from copra.tasks.generated import DrawnTask
from copra.tasks.task import Task

class Riddles(Task):
    kind: Literal["riddles"] = "riddles"

class Drawn(DrawnTask):
    kind: Literal["drawn"] = "drawn"

number = 3
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package; its module has another name each time, as Python keeps modules."""
    monkeypatch.setenv("COPRA_PLUGINS", "on")
    monkeypatch.syspath_prepend(tmp_path)
    plugins._entry_points.cache_clear()

    def make(group, entries, code=TASK, package="copra-riddles"):
        module = f"module_{abs(hash((str(tmp_path), package)))}"
        targets = {name: target.format(module) for name, target in entries.items()}
        install(tmp_path, {group: targets}, code, module, package)

    yield make
    plugins._entry_points.cache_clear()


def problem():
    """The one error of the installed tasks."""
    with pytest.raises(CopraError) as error:
        [plugin.load_kind(Task) for plugin in plugins_of("copra.tasks", ["gsm8k"]).values()]
    (line,) = str(error.value).split("\n")
    assert "of the installed package copra-riddles 0.1.0: " in line
    assert line.endswith(
        ". Mend the package or uninstall it (pip uninstall copra-riddles); "
        "COPRA_PLUGINS=off runs copra without any plugin."
    )
    return line


def test_a_plugin_is_found_by_its_name_and_loaded_when_asked(installed):
    installed("copra.tasks", {"riddles": "{}:Riddles"})
    assert plugins_of("copra.methods", ()) == {}
    (plugin,) = plugins_of("copra.tasks", ["gsm8k"]).values()
    assert (plugin.name, plugin.package, plugin.version) == ("riddles", "copra-riddles", "0.1.0")
    assert plugin.load_kind(Task)().kind == "riddles"


def test_none_is_found_where_they_are_off(installed, monkeypatch):
    installed("copra.tasks", {"gsm8k": "{}:Riddles"})
    monkeypatch.setenv("COPRA_PLUGINS", "off")
    assert plugins_of("copra.tasks", ["gsm8k"]) == {}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"riddles": "{}:Riddle"},
            r"it cannot be imported \(AttributeError: module .* has no attribute 'Riddle'\)",
        ),
        ({"riddles": "no_such_module:Riddles"}, r"\(ModuleNotFoundError: No module named 'no_such_module'\)"),
        ({"riddles": "{}:number"}, r"3 is no subclass of copra\.tasks\.task\.Task"),
        ({"riddles": "{}:Literal"}, r"Literal is no subclass of copra\.tasks\.task\.Task"),
        ({"drawn": "{}:Drawn"}, "the class does not define draw"),
        ({"puzzles": "{}:Riddles"}, r'another kind .* it needs the line `kind: Literal\["puzzles"\]`'),
        ({"gsm8k": "{}:Riddles"}, "copra has a gsm8k of its own, so the plugin needs another name"),
        ({"Rid-dles": "{}:Riddles"}, "at most 60 lower-case letters"),
    ],
)
def test_a_task_that_cannot_be_used_is_an_error(installed, entries, message):
    installed("copra.tasks", entries)
    ((name, target),) = entries.items()
    beginning = rf'entry point {name} = "\w+:{target.split(":")[1]}" in copra\.tasks of the installed '
    assert re.match(f"{beginning}.*{message}", problem())


def test_an_error_inside_of_a_plugin_is_told_in_one_line(installed):
    installed("copra.tasks", {"riddles": "{}:Riddles"}, "raise ValueError('two\\nlines')")
    assert "it cannot be imported (ValueError: two lines)" in problem()


def test_two_packages_with_one_name_are_both_named(installed):
    installed("copra.tasks", {"riddles": "{}:Riddles"})
    installed("copra.tasks", {"riddles": "{}:Riddles"}, package="copra-others")
    with pytest.raises(
        CopraError, match=r"the package copra-(riddles|others) 0\.1\.0 has the same name"
    ) as error:
        plugins_of("copra.tasks", ())
    assert {"copra-riddles 0.1.0", "copra-others 0.1.0"} <= set(
        re.findall(r"copra-\w+ 0\.1\.0", str(error.value))
    )


@pytest.mark.parametrize(
    ("units", "message"), [("()", r"its units \(\)"), ("('layer',)", r"its units \('layer',\)")]
)
def test_a_metric_names_the_units_that_it_scores(installed, monkeypatch, units, message):
    code = "from copra.schema.pass_metric import PassMetric\n"
    code += f"class Mine(PassMetric):\n    units = {units}\n    def scores(self, seen): return {{}}\n"
    installed("copra.metrics", {"mine": "{}:Mine"}, code)
    monkeypatch.setattr(metrics, "METRIC_PLUGINS", plugins_of("copra.metrics", ()))
    metrics.plugin_metrics.cache_clear()
    with pytest.raises(CopraError, match=f"{message} are not of layers, kv_groups, heads, neurons"):
        metrics.plugin_metrics()
