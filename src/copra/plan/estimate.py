"""Sizes, rows, schedules and bytes of the models of an experiment."""

from dataclasses import replace
from pathlib import Path

from copra.cost.flops import FlopCounter, of_typical_answer
from copra.cost.memory import training_bytes
from copra.experiment.recipes import Node, step_of
from copra.experiment.workflow import Workflow
from copra.methods.few_shot import FewShot
from copra.methods.method import Stage
from copra.methods.registry import stage_of_kind
from copra.plan.jobs import MODELS, Job
from copra.plan.rows import TaskRows, preview_of, task_rows
from copra.plan.sizes import Flops, Size, base_size, pruned_shapes, recorded_size
from copra.plan.stages import (
    MARKERS,
    PromptStats,
    TrainingSchedule,
    few_shot_prompts,
    trained_prompts,
    training_schedule,
)
from copra.schema.base import Base
from copra.schema.pruning import Prune
from copra.schema.shape import ModelShape
from copra.schema.training import Training
from copra.tasks.task import Preview
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, canonical_json, read_json

BYTES = {"float32": 4, "bfloat16": 2}
LARGE_MODULES = ("emulator", "step_decoder")
"""Extra modules of a method that count as large as the model; the others are left out."""
STATE_COPIES = 10
"""The largest state of a training in copies of its weights: weights and two moments, twice and once more
while they are written, and the best weights."""


class Estimate:
    """The models of an experiment. `cached` are the keys of jobs with a result, whose records are read.

    Functions with a `bound` return the least value for 0 and the greatest for 1: sizes after a pruning can
    depend on scores that are not known yet.
    """

    def __init__(self, workflow: Workflow, results: Path, cached: set[str]):
        self.workflow, self.experiment = workflow, workflow.experiment
        self.results, self.cached = results, cached
        self._sizes: dict[str, tuple[Size, Size] | None] = {}
        self._previews: dict[str, Preview] = {}
        self._rows: dict[tuple[str, str], TaskRows] = {}
        self._schedules: dict[str, TrainingSchedule] = {}

    def base_of(self, name: str) -> str:
        """Return the name of the base node that a node descends from."""
        return self.workflow.tree.path_to(name)[0].name

    def preview(self, task: str) -> Preview:
        """Return what is known of the rows of a task. It is drawn or read once: that takes time."""
        if task not in self._previews:
            self._previews[task] = preview_of(task, self.experiment.tasks[task], self.results)
        return self._previews[task]

    def rows(self, evaluation: str) -> TaskRows:
        """Return the rows of the task of an evaluation (or a node), as tokenized by the node's base."""
        node, task = self.workflow.node_and_task(evaluation)
        base = self.base_of(node.name)
        if (task, base) not in self._rows:
            folder = self.results / "models" / base if f"base/{base}" in self.cached else None
            # The tokenizer of a base from scratch is trained on the task of the experiment.
            own = self.workflow.node(base).task
            text = None if task in (own, node.task) else self.rows(base).text
            preview, settings = self.preview(task), self.experiment.tasks[task]
            self._rows[task, base] = task_rows(task, settings, preview, self._base(base), folder, text)
        return self._rows[task, base]

    def assumed(self) -> list[str]:
        """Return the assumptions about rows, complete after the work of all jobs was computed."""
        return list(dict.fromkeys(line for rows in self._rows.values() for line in rows.assumed))

    def unknown(self) -> dict[str, str]:
        """Return the bases whose sizes are not known, each with its path."""
        bases = [node.name for node in self.workflow.tree.nodes.values() if node.kind == "base"]
        unknown = {name: self._base(name).path for name in bases if self.sizes(name) is None}
        return {name: path for name, path in unknown.items() if path is not None}

    def sizes(self, name: str) -> tuple[Size, Size] | None:
        """Return the least and the greatest size of a node; None if that of its base is not known."""
        if name not in self._sizes:
            self._sizes[name] = self._compute_sizes(self.workflow.node(name))
        return self._sizes[name]

    def known_sizes(self, name: str) -> tuple[Size, Size]:
        """Return the least and the greatest size of a node of known size."""
        sizes = self.sizes(name)
        assert sizes is not None, name
        return sizes

    def shape(self, name: str, bound: int = 0) -> ModelShape:
        """Return the shape of a node of known size."""
        return self.known_sizes(name)[bound].shape

    def computed_shape(self, name: str, bound: int = 0) -> ModelShape:
        """Return the shape of a node that trains or answers, with a layer for each visit of a layer."""
        last = self.answering_node(name)
        loop = stage_of(last).loop if last is not None and last.kind == "train" else None
        return self.shape(name, bound).looped(loop)

    def flops_of(self, name: str) -> Flops:
        """Return the FLOPs per typical answer of a node's task as a function of the shape."""
        typical = self.rows(name).typical()
        return lambda shape: of_typical_answer(shape, typical).total

    def _compute_sizes(self, node: Node) -> tuple[Size, Size] | None:
        if f"{node.kind}/{node.name}" in self.cached:
            return (recorded_size(read_json(self.results / "models" / node.name / MANIFEST)),) * 2
        if node.kind == "base":
            base = self._base(node.name)
            vocabulary = self.rows(node.name).vocabulary if base.from_scratch else None
            size = base_size(base, vocabulary)
            return None if size is None else (size, size)
        assert node.parent is not None
        parents = self.sizes(node.parent)
        if parents is None or node.kind != "prune":
            return parents
        if f"select/{node.name}" in self.cached:
            plan = read_json(self.results / "plans" / f"{node.name}.json")
            shapes = (ModelShape.from_json(plan["shape_after"]),) * 2
        else:
            dense, prune = self.shape(self.base_of(node.name)), step_of(self.experiment, node, Prune)
            found = [
                pruned_shapes(prune, size.shape, dense, self.flops_of(node.name))
                for size in dict.fromkeys(parents)
            ]
            shapes = found[0][0], found[-1][1]
        return replace(parents[0], shape=shapes[0]), replace(parents[1], shape=shapes[1])

    def _base(self, node: str) -> Base:
        return self.experiment.bases[node.split("@")[0]]

    # How a node trains and answers.

    def schedule(self, name: str) -> TrainingSchedule:
        """Return the schedule of a training node."""
        node = self.workflow.node(name)
        settings = {key: node.settings[key] for key in ("method", "stage", "training")}
        key = canonical_json([settings, node.task, self.base_of(name)])
        if key not in self._schedules:
            processes = self.experiment.compute.workers
            self._schedules[key] = training_schedule(
                stage_of(node), training_of(node), self.rows(name), processes
            )
        return self._schedules[key]

    def prompt_stats(self, evaluation: str) -> PromptStats:
        """Return how a node answers, as in `Workflow.node_and_task`."""
        name, settings = self.workflow.node_and_task(evaluation)[0].name, self.experiment.evaluation
        rows, last = self.rows(name), self.answering_node(name)
        if last is None:
            raise CopraError(f"{name}: was never trained to answer, so its answers cannot be planned.")
        asked = self.rows(evaluation).rows[settings.split]
        if last.kind == "train":
            return trained_prompts(stage_of(last), asked, settings.max_new_tokens)
        prompt, task = step_of(self.experiment, last, FewShot), self.experiment.tasks[last.task]
        return few_shot_prompts(prompt, task, rows, asked, settings.max_new_tokens)

    def answering_node(self, name: str) -> Node | None:
        """Return the training or prompt that determines how a node answers; None if there is none."""
        path = reversed(self.workflow.tree.path_to(name))
        return next((each for each in path if each.kind in ("train", "prompt")), None)

    # Bytes.

    def checkpoint_bytes(self, job: Job, bound: int) -> float:
        """Return the bytes of the weights that a job makes; 0 for other jobs and unknown sizes."""
        if job.rule not in MODELS or (sizes := self.sizes(job.name)) is None:
            return 0.0
        size, each = sizes[bound], BYTES[self._base(self.base_of(job.name)).dtype]
        weights = self._weights(job.name, bound) * each
        if job.rule == "quantize":
            weights -= (size.parameters - size.outside) * (each - 1)
        return weights

    def memory_bytes(self, name: str, bound: int) -> float:
        """Return the peak memory of a training, in each process."""
        node, schedule, compute = self.workflow.node(name), self.schedule(name), self.experiment.compute
        shape, parameters = self.computed_shape(name, bound), self._weights(name, bound)
        rank = training_of(node).lora_rank
        # An adapter's FLOPs per token and rank are two per weight.
        adapter = FlopCounter(self.shape(name, bound)).adapter / 2
        trained = parameters if rank is None else rank * adapter
        teacher = self._weights(node.teacher, bound) if node.teacher else 0.0
        shards = compute.workers if compute.sharding else 1
        bfloat16 = compute.precision == "bfloat16"
        weight_bytes = BYTES[self._base(self.base_of(name)).dtype]
        states = (parameters + teacher) / shards, trained / shards
        return training_bytes(
            shape, *states, schedule.tokens, schedule.logits, weight_bytes, 2 if bfloat16 else weight_bytes
        )

    def _weights(self, name: str, bound: int) -> float:
        """Return the number of weights of a node with the large modules in its checkpoint."""
        last, parameters = self.answering_node(name), self.known_sizes(name)[bound].parameters
        if last is None or last.kind != "train":
            return parameters
        stage = stage_of(last)
        spec = stage.decoding(MARKERS)
        kept = stage.extra_modules() if last.name == name else spec.extra_modules if spec else ()
        return parameters * (1 + sum(module in LARGE_MODULES for module in kept))


def stage_of(node: Node) -> Stage:
    """Return the stage of a training node."""
    assert node.method is not None
    return stage_of_kind(node.method, node.settings["stage"])


def training_of(node: Node) -> Training:
    """Return the optimization settings of a training node."""
    return Training.model_validate(node.settings["training"])
