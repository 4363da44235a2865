"""The nodes of a recipe tree that an experiment selects, for scores, answers, times, tables and figures."""

from functools import cached_property
from pathlib import Path

from copra.experiment.config import Experiment
from copra.experiment.method_kinds import method_kinds
from copra.experiment.recipes import Node, RecipeEnd, Tree, step_of
from copra.schema.curve import Curve
from copra.schema.metrics import GREEDY
from copra.schema.pruning import Prune
from copra.utils.errors import CopraError
from copra.utils.files import summary_beside


class Selection:
    """The nodes, evaluations, scores and curves that an experiment asks for, by name.

    Its results are in `folder`, a relative path.
    """

    def __init__(self, experiment: Experiment, tree: Tree, folder: str):
        self.experiment, self.tree, self.folder = experiment, tree, folder

    def node(self, name: str) -> Node:
        """Return a node by its name.

        Raises:
            CopraError: no recipe of the config has this node.
        """
        if name not in self.tree.nodes:
            raise CopraError(f"no recipe of this config leads to the model {name!r}")
        return self.tree.nodes[name]

    def scores(self, name: str) -> list[str]:
        """Return the scores that a node's pruning needs, if any, as the small file with their checksum."""
        node = self.node(name)
        prune = step_of(self.experiment, node, Prune)
        if prune.scoring is None:
            return []
        objective = self.experiment.importance.objective_of(prune.objective)
        return [f"{self.folder}/scores/{node.parent}/{objective}/{prune.scoring}.json"]

    def curve(self, name: str) -> Curve:
        """Return a resolved pruning curve by its name."""
        return self.experiment.curves[name].resolved(self.experiment.importance)

    def curve_scores(self, curve: str, node: str) -> list[str]:
        """Return the scores that a curve on a node needs, as the small files with their checksums."""
        tables = self.curve(curve).tables()
        return [f"{self.folder}/scores/{node}/{summary_beside(Path(table))}" for table in tables]

    @cached_property
    def curved(self) -> dict[str, list[str]]:
        """The nodes of each pruning curve, one per seed."""
        return {
            name: [node.name for node in self.tree.nodes.values() if node.recipe == curve.model]
            for name, curve in self.experiment.curves.items()
        }

    @cached_property
    def measured(self) -> list[str]:
        """All pairs of a pruning curve and a node, such as layers/llama@0+cot."""
        return [f"{name}/{node}" for name, nodes in self.curved.items() for node in nodes]

    @cached_property
    def ordered(self) -> list[str]:
        """Pruning curves of layers with a metric that orders the layers, that is, not random alone."""
        curves = self.experiment.curves.items()
        return [name for name, curve in curves if curve.unit == "layers" and curve.metrics != ["random"]]

    @cached_property
    def ordered_scores(self) -> list[str]:
        """The scores behind the orders of `ordered` curves, as the small files with their checksums."""
        pairs = [(curve, node) for curve in self.ordered for node in self.curved[curve]]
        return [path for curve, node in pairs for path in self.curve_scores(curve, node)]

    @cached_property
    def scored(self) -> list[str]:
        """All scores that prunings and pruning curves need, as the small files with their checksums."""
        prunings = [node.name for node in self.tree.nodes.values() if node.kind == "prune"]
        paths = {path for name in prunings for path in self.scores(name)}
        for name, nodes in self.curved.items():
            paths |= {path for node in nodes for path in self.curve_scores(name, node)}
        return sorted(paths)

    @cached_property
    def searched(self) -> dict[str, int | None]:
        """The number of layers that the greedy search behind each score table removes.

        It is the largest number that a pruning or curve takes from the table; None, all removable layers, if
        a budget is not a count. The keys are the small files beside the tables.
        """
        wanted: dict[str, list[int | None]] = {}
        for node in self.tree.nodes.values():
            if node.kind == "prune" and (step := step_of(self.experiment, node, Prune)).metric in GREEDY:
                for table in self.scores(node.name):
                    wanted.setdefault(table, []).append(step.budget.count)
        for name, nodes in self.curved.items():
            curve = self.curve(name)
            greedy = (line.table for line in curve.lines() if line.metric in GREEDY and line.table)
            for file in dict.fromkeys(summary_beside(Path(table)) for table in greedy):
                for model in nodes:
                    wanted.setdefault(f"{self.folder}/scores/{model}/{file}", []).append(max(curve.remove))
        return {
            table: None if None in counts else max(filter(None, counts)) for table, counts in wanted.items()
        }

    def greedy_removals(self, node: str, objective: str, scoring: str) -> int | None:
        """Return the number of layers that a greedy search removes, by `importance` or else `searched`."""
        given = self.experiment.importance.greedy_removals
        table = f"{self.folder}/scores/{node}/{objective}/{scoring}.json"
        return self.searched[table] if given is None else given

    @cached_property
    def ends(self) -> list[str]:
        """The last nodes of all recipes."""
        return [name for end in self.tree.recipes for name in end.nodes]

    @cached_property
    def on_other_tasks(self) -> list[str]:
        """Evaluations of the last nodes of all recipes on other tasks, such as svamp/llama@0+cot."""
        return [
            f"{task}/{name}"
            for task in self.experiment.evaluation.tasks
            for name in dict.fromkeys(self.ends)
            if task != self.node(name).task
        ]

    @cached_property
    def end_of(self) -> dict[str, RecipeEnd]:
        """The recipe of each of the `ends`."""
        return {name: end for end in self.tree.recipes for name in end.nodes}

    @cached_property
    def methods(self) -> dict[str, str]:
        """The kind of each step of the tree that is a method or a prompt, by step; see `method_kinds`."""
        return method_kinds(self.experiment, self.tree)

    @cached_property
    def before_and_after(self) -> list[str]:
        """Nodes right after a pruning, and the nodes that they were pruned from."""
        return list(dict.fromkeys(name for node in self.tree.pruned() for name in (node.trained, node.name)))

    @cached_property
    def timed(self) -> list[str]:
        """Nodes whose latency is measured: the last node of each recipe, for one seed."""
        return [end.nodes[0] for end in self.tree.recipes] if self.experiment.latency else []

    @cached_property
    def converted(self) -> dict[str, str]:
        """Nodes that are converted to the formats of other programs, for one seed, with their recipes."""
        if self.experiment.conversions is None:
            return {}
        ends = {end.recipe: end.nodes[0] for end in self.tree.recipes}
        return {ends[recipe]: recipe for recipe in self.experiment.conversions.recipes}

    @cached_property
    def trainings(self) -> list[str]:
        return [node.name for node in self.tree.nodes.values() if node.kind == "train"]

    @cached_property
    def staged(self) -> list[str]:
        """Nodes after each stage of a staged step that are evaluated and can answer."""
        if not self.experiment.evaluation.stages:
            return []
        return [node.name for node in self.tree.nodes.values() if node.stage is not None and node.answers]

    @cached_property
    def starts(self) -> dict[str, Node]:
        """The nodes that the last training steps of recipes started from, by the last nodes of the recipes.

        Only if they are asked for, and without recipes that train nothing.
        """
        ends = dict.fromkeys(self.ends) if self.experiment.evaluation.starts else ()
        found = {name: self.tree.start_of(name) for name in ends}
        return {name: start for name, start in found.items() if start is not None}

    @cached_property
    def started(self) -> list[str]:
        """Nodes in `starts` that are evaluated: those that can answer the questions of the recipe's task."""
        return list(
            dict.fromkeys(start.name for name, start in self.starts.items() if self.start_answers(name))
        )

    def start_answers(self, end: str) -> bool:
        """True if the start of a recipe's last node can answer questions, and those of the same task."""
        start = self.starts[end]
        return start.method is not None and start.task == self.node(end).task

    @cached_property
    def swept(self) -> list[str]:
        """Last nodes of recipes that are also evaluated with other numbers of latents."""
        asked = self.experiment.evaluation.latents
        return [name for name in dict.fromkeys(self.ends) if asked and self.node(name).latents]

    @cached_property
    def swapped(self) -> list[str]:
        """Last nodes of recipes that are also evaluated with the latents of other sources."""
        asked = self.experiment.evaluation.latents_from
        return [name for name in dict.fromkeys(self.ends) if asked and self.node(name).has_recurrent_latents]

    @cached_property
    def seen_through(self) -> list[str]:
        """Last nodes of recipes, for one seed, whose latents are decoded by the logit lens."""
        asked = self.experiment.evaluation.lens
        return [
            end.nodes[0]
            for end in self.tree.recipes
            if asked and self.node(end.nodes[0]).has_recurrent_latents
        ]

    @cached_property
    def contrasted(self) -> dict[str, list[str]]:
        """The last nodes of each recipe in a contrast."""
        names = {name for contrast in self.experiment.contrasts.values() for name in contrast.recipes}
        return {end.recipe: list(end.nodes) for end in self.tree.recipes if end.recipe in names}
