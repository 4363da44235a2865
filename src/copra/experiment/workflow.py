"""The experiment behind the rules: the files of models, and the settings of each rule.

`copra.experiment.outputs` has the tables and figures.

Every rule gets its settings as one canonical JSON value, since Snakemake compares params as a set of values
without their names. The value holds the settings that the rule depends on and the fingerprint of its code.
Local input files are identified by their content, so that neither their times nor their paths cause a rerun.
Values that a job needs but must not rerun for, such as those paths, are passed separately.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from copra.experiment.base_problems import check_bases
from copra.experiment.config import name_of, parse
from copra.experiment.contrast_problems import check_contrasts
from copra.experiment.conversion_problems import check_conversions
from copra.experiment.curve_problems import check_curves
from copra.experiment.family_problems import check_families
from copra.experiment.other_task_problems import check_other_tasks
from copra.experiment.plugins_used import plugins_of_scoring, plugins_of_task, plugins_of_training
from copra.experiment.recipes import Node, build_tree, step_of
from copra.experiment.selection import Selection
from copra.methods import Method
from copra.methods.few_shot import FewShot
from copra.models.base_files import absence_problem
from copra.schema.base import Quantize
from copra.schema.metrics import counts_answers
from copra.schema.pruning import Prune
from copra.schema.scoring import Objective
from copra.tasks.prepare import prepared
from copra.tasks.task import SPLITS, Split
from copra.utils.digests import Digests
from copra.utils.errors import CopraError
from copra.utils.files import canonical_json, digest, tables_beside
from copra.utils.fingerprint import fingerprint
from copra.utils.plugins import Plugin


def put_copra_on_path() -> None:
    """Put the folder of this Python on PATH, so that the rules' shell lines find `copra`."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


class Workflow(Selection):
    """An experiment with its recipe tree, as the rules use it."""

    def __init__(self, config: Mapping[str, Any], *files: str):
        """Check a config that was merged from `files`, at least one.

        Raises:
            CopraError: one line per problem.
        """
        self.config, self.files = config, files
        source = ", ".join(files)
        experiment = parse(config, source)
        try:
            tree = build_tree(experiment)
            check_contrasts(experiment, tree)
            check_conversions(experiment, tree)
            check_curves(experiment, tree)
            check_other_tasks(experiment, tree)
            check_bases(experiment)
            check_families(experiment, tree)
        except CopraError as error:
            raise CopraError("\n".join(f"{source}: {line}" for line in str(error).split("\n"))) from None
        super().__init__(experiment, tree, f"results/{experiment.name or name_of(files[0])}")

    # Names, as regular expressions: the last step of a node's name determines the rule that makes it.

    def steps_pattern(self, kind: type) -> str:
        """Return the pattern of nodes whose last step is of a kind.

        The kinds are `Method` (a training), `Prune`, `FewShot` and `Quantize`.
        """
        names = [re.escape(name) for name, step in self.experiment.steps.items() if isinstance(step, kind)]
        return rf"[^/]+\+({'|'.join(names) or 'none'})(\.\d+)?(@-?\d+)?"

    @property
    def trained(self) -> str:
        return self.steps_pattern(Method)

    @property
    def pruned(self) -> str:
        return self.steps_pattern(Prune)

    @property
    def prompted(self) -> str:
        return self.steps_pattern(FewShot)

    @property
    def quantized(self) -> str:
        return self.steps_pattern(Quantize)

    # Files.

    def within(self, kind: str, path: str) -> str:
        """Return a path relative to a results folder, such as llama@0/cot/passes.parquet below scores."""
        return path.removeprefix(f"{self.folder}/{kind}/")

    def parent(self, name: str) -> str:
        return f"{self.folder}/models/{self.node(name).parent}"

    def teacher(self, name: str) -> list[str]:
        """Return the manifest of a node's teacher, if there is one."""
        teacher = self.node(name).teacher
        return [f"{self.folder}/models/{teacher}/copra.json"] if teacher else []

    def pretrained(self, name: str) -> list[str]:
        """Return the manifest of the model whose weights initialize an extra module of a node, if any."""
        pretrained = self.node(name).pretrained
        return [f"{self.folder}/models/{pretrained}/copra.json"] if pretrained else []

    def node_and_task(self, evaluation: str) -> tuple[Node, str]:
        """Return the node and the task of an evaluation by its name.

        The name is NODE if the node is asked the questions of its own task, TASK/NODE for another task.

        Raises:
            CopraError: the config has no such node or task.
        """
        task, _, name = evaluation.rpartition("/")
        node = self.node(name)
        if task and task not in self.experiment.tasks:
            raise CopraError(f"this config has no task {task!r}")
        return node, task or node.task

    def data(self, evaluation: str, *splits: Split) -> list[str]:
        """Return the prepared splits of an evaluation's (or a node's) task, as small files with checksums."""
        _, task = self.node_and_task(evaluation)
        return [f"{self.folder}/data/{task}/{split}.json" for split in splits]

    def trained_on(self, evaluation: str) -> list[str]:
        """Return the splits that an evaluated model was trained on, if it is asked another task.

        Of its own task, `copra data` leaves test questions out of them.
        """
        node, task = self.node_and_task(evaluation)
        return [] if task == node.task else self.data(node.name, "train", "valid")

    # The user's files, anywhere on this machine.

    @cached_property
    def digests(self) -> Digests:
        return Digests(Path(self.folder) / "digests.json")

    def base_source(self, name: str) -> Path | None:
        """Return the folder or GGUF file of a local base, or None."""
        base = self.experiment.bases[name.split("@")[0]]
        return base.gguf or base.folder

    def prompt_source(self, name: str) -> Path | None:
        """Return the file of a prompt's examples, if it has one."""
        return step_of(self.experiment, self.node(name), FewShot).path

    def text_source(self, objective: Objective) -> Path | None:
        """Return the text file that an objective reads, if it reads one."""
        text = self.experiment.importance.text
        return text.path if objective == "text" and text else None

    def place_of(self, source: Path | None) -> str:
        """Return the value of `--files`: the path of a local file by the address of its content."""
        return canonical_json({self.digests.address(source): str(source.absolute())} if source else {})

    def by_content(self, settings: Mapping[str, Any], key: str, source: Path | None) -> dict[str, Any]:
        """Return settings with the path of a local file or folder replaced by the address of its content."""
        return {**settings, **({key: self.digests.address(source)} if source else {})}

    def rows_sha256(self, task: str) -> dict[Split, str]:
        """Return the sha256 of the rows of each split of a local task, whose rows are known before the run.

        Raises:
            CopraError: a file cannot be read, or rows cannot be used.
        """
        settings = self.experiment.tasks[task]
        files = {split: self.digests.address(path) for split, path in settings.files().items()}
        key = digest([settings.canonical(), files, fingerprint("data", *plugins_of_task(settings))])
        return self.digests.made(
            task, key, lambda: {s: each.digest for s, each in prepared(settings).items()}
        )

    def artifacts(self) -> list[str]:
        """Return the intermediate results. They are targets of a run too, so that deleted ones are remade."""
        models = [f"{self.folder}/models/{name}/copra.json" for name in self.tree.nodes]
        weights = [f"{self.folder}/models/{name}/model.safetensors" for name in self.tree.nodes]
        evaluated = dict.fromkeys(
            [*self.ends, *self.before_and_after, *self.staged, *self.started, *self.on_other_tasks]
        )
        predictions = [f"{self.folder}/evaluations/{name}/predictions.parquet" for name in evaluated]
        conversions = [f"{self.folder}/conversions/{name}/files" for name in self.converted]
        return [*models, *weights, *self.scored, *tables_beside(self.scored), *predictions, *conversions]

    # Settings.

    def settings(self, command: str, value: Mapping[str, Any], plugins: Iterable[Plugin] = ()) -> str:
        """Return the single params value of a rule; `plugins` are those whose code its job runs."""
        code = {"code": fingerprint(command, *plugins)} if self.experiment.code_fingerprint else {}
        return canonical_json({**value, **code})

    def recorded(self, name: str) -> dict[str, Any]:
        """Return the settings of a node as in its manifest, with local files identified by their content."""
        settings = self.node(name).settings
        if "base" in settings:
            return {**settings, "base": self.by_content(settings["base"], "path", self.base_source(name))}
        if "prompt" in settings:
            prompt = self.by_content(settings["prompt"], "file", self.prompt_source(name))
            return {**settings, "prompt": prompt}
        return settings

    def split_settings(self, task: str, split: Split) -> dict[str, Any]:
        """Return the settings that identify a split.

        They are the sha256 of its rows, or its sources if the Hub has the rows.
        """
        settings = self.experiment.tasks[task]
        if settings.is_local:
            return {"split": split, "rows_sha256": self.rows_sha256(task)[split]}
        # A split's rows depend on later splits, whose questions are left out of it.
        later = SPLITS[SPLITS.index(split) :]
        files = {key: self.digests.address(path) for key, path in settings.files().items() if key in later}
        return {"split": split, "settings": settings.concerning(split), "files": files}

    def data_settings(self, task: str, split: Split) -> str:
        used = plugins_of_task(self.experiment.tasks[task])
        return self.settings("data", self.split_settings(task, split), used)

    def task_settings(self, task: str) -> str:
        """Return all settings of a task. The job of each split needs them, but does not rerun for them."""
        return canonical_json(self.experiment.tasks[task].canonical())

    def base_settings(self, name: str) -> str:
        # transformers could read the path of a missing folder as a Hub id.
        where = name.split("@")[0]
        if problem := absence_problem(self.experiment.bases[where]):
            raise CopraError(f"bases.{where}.{problem}")
        return self.settings("base", {"node": name, **self.recorded(name)})

    def train_settings(self, name: str) -> str:
        node = self.node(name)
        value = {"node": name, **node.settings}
        if node.needs_accuracy:
            value["max_new_tokens"] = self.experiment.evaluation.max_new_tokens
            value["answers"] = self._answers(node.task)
        return self.settings("train", value, plugins_of_training(node))

    def score_settings(self, node: str, objective: Objective, scoring: str) -> str:
        needed = self.experiment.importance.needed_by(scoring, objective)
        if source := self.text_source(objective):
            needed["text"] = self.by_content(needed["text"], "file", source)
        if "greedy_removals" in needed:
            needed["greedy_removals"] = self.greedy_removals(node, objective, scoring)
        value: dict[str, Any] = {"scoring": scoring, "objective": objective, "importance": needed}
        if counts_answers(scoring):
            value["max_new_tokens"] = self.experiment.evaluation.max_new_tokens
            value["answers"] = self._answers(self.node(node).task)
        return self.settings("score", value, plugins_of_scoring(scoring))

    def select_settings(self, name: str) -> str:
        return self.settings("select", self.node(name).settings)

    def prompt_settings(self, name: str) -> str:
        return self.settings("prompt", {"node": name, **self.recorded(name)})

    def prune_settings(self, name: str) -> str:
        return self.settings("prune", {"node": name})

    def quantize_settings(self, name: str) -> str:
        return self.settings("quantize", {"node": name, **self.node(name).settings})

    def evaluate_settings(self, evaluation: str) -> str:
        node, task = self.node_and_task(evaluation)
        value = {"node": node.name, "task": task, "answers": self._answers(task)}
        if task != node.task:
            value["trained_on"] = node.task
        return self.settings(
            "evaluate",
            value | self._decoded("split", "limit", "max_new_tokens", "batch_size", "compile"),
        )

    def sweep_latents_settings(self, name: str) -> str:
        value = {"node": name, "answers": self._answers(self.node(name).task)}
        value |= self._decoded("latents", "split", "limit", "max_new_tokens", "batch_size", "compile")
        return self.settings("sweep_latents", value)

    def swap_latents_settings(self, name: str) -> str:
        value = {"node": name, "answers": self._answers(self.node(name).task)}
        value |= self._decoded("latents_from", "split", "limit", "max_new_tokens", "batch_size")
        return self.settings("swap_latents", value)

    def logit_lens_settings(self, name: str) -> str:
        value = {"node": name, "questions": self.experiment.evaluation.lens}
        return self.settings("logit_lens", value | self._decoded("split", "max_new_tokens", "batch_size"))

    def curve_settings(self, curve: str, node: str) -> str:
        value: dict[str, Any] = {"name": curve, "curve": self.curve(curve).canonical(), "node": node}
        value["answers"] = self._answers(self.node(node).task)
        value["loss_batch_size"] = self.experiment.importance.batch_size
        return self.settings("curve", value | self._decoded("split", "limit", "max_new_tokens", "batch_size"))

    def latency_settings(self) -> str:
        assert self.experiment.latency is not None, "without it, no latency is measured"
        value = self.experiment.latency.canonical()
        value["max_new_tokens"] = self.experiment.evaluation.max_new_tokens
        value["precision"] = self.experiment.compute.precision
        return self.settings("latency", value)

    def convert_settings(self, name: str) -> str:
        assert self.experiment.conversions is not None, "without them, nothing is converted"
        conversions, evaluation = self.experiment.conversions, self.experiment.evaluation
        value = {
            "node": name,
            "formats": conversions.formats,
            "answers": self._answers(self.node(name).task),
            "split": evaluation.split,
            "limit": conversions.questions,
            "max_new_tokens": evaluation.max_new_tokens,
        }
        return self.settings("convert", value)

    def _decoded(self, *keys: str) -> dict[str, Any]:
        """Return these settings of the evaluation, and the precision."""
        value = self.experiment.evaluation.canonical()
        return {key: value[key] for key in keys} | {"precision": self.experiment.compute.precision}

    def _answers(self, task: str) -> str:
        return self.experiment.tasks[task].answers
