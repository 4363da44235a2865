"""The plugins that an experiment uses: those whose code its jobs run, and lines about them for people."""

import sys
from collections.abc import Iterable, Iterator, Mapping

from copra.experiment.config import Experiment
from copra.experiment.recipes import Node, Tree
from copra.methods.registry import METHOD_PLUGINS, stage_of_kind
from copra.schema.metrics import METRIC_PLUGINS
from copra.schema.pruning import Prune
from copra.tasks.registry import TASK_PLUGINS
from copra.tasks.task import Task
from copra.utils.plugins import Plugin, plugins_of


def plugins_of_task(task: Task) -> list[Plugin]:
    """Return the plugin that defines a task; none for copra's own."""
    return _named([task.kind], TASK_PLUGINS)


def plugins_of_training(node: Node) -> list[Plugin]:
    """Return the plugins that define the method of a training node and its extra modules."""
    if node.method not in METHOD_PLUGINS:
        return []
    modules = stage_of_kind(node.method, node.settings["stage"]).extra_modules()
    return [METHOD_PLUGINS[node.method], *_named(modules, plugins_of("copra.extra_modules", ()))]


def plugins_of_scoring(scoring: str) -> list[Plugin]:
    """Return the plugin that defines the metric of a scoring run."""
    return _named([scoring.removeprefix("passes.")], METRIC_PLUGINS)


def plugin_lines(experiment: Experiment, tree: Tree) -> list[str]:
    """Return a line per plugin that an experiment uses, and a warning if a plugin imports torch.

    Commands that read a config do not import torch themselves.
    """
    used = dict.fromkeys(_used(experiment, tree))
    lines = [f"plugin: {each.name} ({each.group}) of {each.package} {each.version}" for each in used]
    if used and "torch" in sys.modules:
        packages = ", ".join(dict.fromkeys(each.package for each in used))
        lines.append(
            f"warning: a plugin of {packages} imports torch when it is loaded, so that every command takes "
            "seconds longer; import it inside the functions that compute"
        )
    return lines


def _used(experiment: Experiment, tree: Tree) -> Iterator[Plugin]:
    for task in experiment.tasks.values():
        yield from plugins_of_task(task)
    for node in tree.nodes.values():
        if node.kind == "train":
            yield from plugins_of_training(node)
    metrics = [step.metric for step in experiment.steps.values() if isinstance(step, Prune)]
    metrics += [metric for curve in experiment.curves.values() for metric in curve.metrics]
    yield from _named(metrics, METRIC_PLUGINS)


def _named(names: Iterable[str], plugins: Mapping[str, Plugin]) -> list[Plugin]:
    return [plugins[name] for name in names if name in plugins]
