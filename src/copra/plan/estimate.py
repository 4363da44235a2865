"""Estimates of the FLOPs of each job of an experiment and of the bytes that it writes to disk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from copra.cost.parameters import matrix_parameters
from copra.experiment.recipes import Node
from copra.experiment.workflow import Workflow
from copra.methods import METHODS
from copra.methods.few_shot import FewShot
from copra.methods.method import Stage
from copra.plan import work
from copra.plan.jobs import MODELS, Job
from copra.plan.rows import TaskRows, task_rows, thinned, tokens_of, worked_rows
from copra.plan.shapes import Size, base_size, estimated_cut, recorded_size
from copra.plan.work import PromptStats, TrainingSchedule, Work
from copra.schema.base import Base
from copra.schema.metrics import GREEDY, counts_answers, split_of
from copra.schema.shape import ModelShape
from copra.schema.training import Training
from copra.schema.units import units_of
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, canonical_json, read_json

BYTES = {"float32": 4, "bfloat16": 2}
TOKENIZER_BYTES = 3e6
"""Bytes of a published tokenizer: from 1 MB (GPT-2) to 17 MB (Llama 3), little compared to the weights."""
PROOF_ROWS = 8


class Estimate:
    """Work and bytes of jobs. `made` are the keys of jobs whose results exist; their records are read."""

    def __init__(self, workflow: Workflow, results: Path, made: set[str]):
        self.workflow = workflow
        self.experiment = workflow.experiment
        self.results = results
        self.made = made
        self._sizes: dict[str, Size | None] = {}
        self._rows: dict[tuple[str, str], TaskRows] = {}
        self._courses: dict[str, TrainingSchedule] = {}
        self._answers: dict[tuple, Work] = {}

    # Sizes of models and rows of tasks.

    def size(self, name: str) -> Size | None:
        """Return the size of a node; None if the size of its base is not known yet."""
        if name not in self._sizes:
            self._sizes[name] = self._size(self.workflow.node(name))
        return self._sizes[name]

    def rows(self, name: str) -> TaskRows:
        """Return the rows of a node's task, tokenized as by its base."""
        base, task = self.base_of(name), self.workflow.node(name).task
        if (task, base) not in self._rows:
            self._rows[task, base] = self._read_rows(task, base)
        return self._rows[task, base]

    def base_of(self, name: str) -> str:
        """Return the name of the base node that a node descends from."""
        return self.workflow.tree.path_to(name)[0].name

    def unknown(self) -> dict[str, str]:
        """Return the bases whose sizes are not known, each with its path."""
        bases = [node.name for node in self.workflow.tree.nodes.values() if node.kind == "base"]
        return {name: self._base(name).path for name in bases if self.size(name) is None}

    def assumed(self) -> list[str]:
        """Return the assumptions about rows. Complete only after the work of all jobs was computed."""
        return list(dict.fromkeys(line for rows in self._rows.values() for line in rows.assumed))

    # Work and bytes of a job.

    def work(self, job: Job) -> Work | None:
        """Return the work of a job; None if it depends on a base of unknown size."""
        if job.verb in ("data", "choose", "table", "export", "figure"):
            return Work()
        nodes = self.workflow.timed if job.verb == "latency" else [self._node_of(job)]
        if job.verb == "train" and (teacher := self.workflow.node(job.name).teacher):
            nodes = [*nodes, teacher]
        if any(self.size(name) is None for name in nodes):
            # Making a base takes no FLOPs.
            return Work() if job.verb == "base" else None
        read = sum(self._weights(name) for name in nodes)
        moved = Work(moved=2 * read if job.verb in MODELS else read)
        return moved + (self._latency() if job.verb == "latency" else self._computed(job, nodes[0]))

    def _computed(self, job: Job, name: str) -> Work:
        """Return the computing work of a job with a model of known size."""
        if job.verb in ("base", "prompt"):
            return Work()
        if job.verb == "train":
            return self.learning(name) + self._looking(name)
        if job.verb in ("prune", "quantize"):
            return self._reading(name, 2 * PROOF_ROWS, PROOF_ROWS)
        if job.verb == "score":
            _, objective, scoring = job.name.split("/")
            return self._scoring(name, objective, scoring)
        if job.verb == "curve":
            return self._curve(job.name.split("/")[0], name)
        evaluation = self.experiment.evaluation
        if job.verb == "lens":
            return self.answers(name, evaluation.lens)
        if job.verb == "sweep":
            numbers = {*evaluation.latents, self.workflow.node(name).latents}
            return sum((self.answers(name, self._questions(name), n) for n in numbers), Work())
        return self.answers(name, self._questions(name))

    def learning(self, name: str) -> Work:
        """Return the training work of a node of known size, as its manifest will count it."""
        return self._course(name).learning(self.shape(name), self._teacher(name))

    def optimizer_steps(self, name: str) -> int:
        """Return the number of optimizer steps of a training node, epochs resolved."""
        return self._course(name).steps

    def answers(self, name: str, questions: int, latents: int | None = None) -> Work:
        """Return the work of answering `questions` questions, with answers as long as right ones.

        `latents` overrides the node's number of latents.
        """
        evaluation = self.experiment.evaluation
        asked = self._asking(name)
        if latents is not None:
            asked = work.with_latents(asked, latents)
        key = (asked, self.shape(name), questions)
        if key not in self._answers:
            self._answers[key] = work.answering(asked, self.shape(name), questions, evaluation.batch_size)
        return self._answers[key]

    def bytes_of(self, job: Job) -> float:
        """Return the bytes on disk of the model that a job makes; 0 for other jobs and for unknown sizes."""
        known = job.verb in MODELS and self.size(job.name) is not None
        return self._weights(job.name) if known else 0.0

    def _weights(self, name: str) -> float:
        """Return the bytes of a checkpoint."""
        node, size, base = self.workflow.node(name), self.size(name), self._base(self.base_of(name))
        each = BYTES[base.dtype]
        weights = size.parameters * each
        if node.kind == "quantize":
            weights -= matrix_parameters(size.shape) * (each - 1)
        parts = sum(_part(part, settings, size) for part, settings in self._parts(node).items())
        return weights + parts * each + (TOKENIZER_BYTES if base.from_scratch is None else 0.0)

    def state_bytes(self, job: Job) -> float:
        """Return the largest size in bytes of the state of a running training.

        It is three copies of weights and two moments, two kept and one being written, and the best weights.
        """
        known = job.verb == "train" and self.size(job.name) is not None
        return 10 * self._weights(job.name) if known else 0.0

    def shape(self, name: str) -> ModelShape:
        return self.size(name).shape

    # Models.

    def _size(self, node: Node) -> Size | None:
        manifest = self.results / "models" / node.name / MANIFEST
        if f"{node.kind}/{node.name}" in self.made:
            return recorded_size(read_json(manifest))
        if node.kind == "base":
            return base_size(self._base(node.name), self.rows(node.name).words)
        parent = self.size(node.parent)
        if parent is None or node.kind != "prune":
            return parent
        if f"choose/{node.name}" in self.made:
            plan = read_json(self.results / "plans" / f"{node.name}.json")
            return parent.pruned(ModelShape.from_json(plan["shape_after"]))
        step, dense = self.experiment.steps[node.step], self.size(self.base_of(node.name))
        return parent.pruned(estimated_cut(step, parent.shape, dense.shape, self.rows(node.name).typical()))

    def _read_rows(self, task: str, base: str) -> TaskRows:
        made = self.results / "models" / base / MANIFEST if f"base/{base}" in self.made else None
        return task_rows(task, self.experiment.tasks[task], self._base(base), made, self.results)

    def _base(self, node: str) -> Base:
        """Return the settings of a base by the name of its node."""
        return self.experiment.bases[node.split("@")[0]]

    def _parts(self, node: Node) -> Mapping[str, Mapping]:
        """Return the parts in a checkpoint: of the last training or, after a later step, of its decoding."""
        last = self._last(node)
        if last is None or last.kind != "train":
            return {}
        stage = _stage(last)
        parts = stage.extra_modules()
        if node is last:
            return parts
        decoding = stage.decoding(work.MARKERS)
        kept = decoding.parts if decoding else ()
        return {name: settings for name, settings in parts.items() if name in kept}

    def _last(self, node: Node) -> Node | None:
        """Return the training or prompt that determines how a node answers; None if there is none."""
        path = reversed(self.workflow.tree.path_to(node.name))
        return next((each for each in path if each.kind in ("train", "prompt")), None)

    # Work.

    def _asking(self, name: str) -> PromptStats:
        evaluation = self.experiment.evaluation
        rows = thinned(self.rows(name).rows[evaluation.split], work.ASKED, tokens_of)
        last = self._last(self.workflow.node(name))
        if last is None:
            raise CopraError(f"{name}: was never trained to answer, so its answers cannot be forecast.")
        if last.kind == "prompt":
            prompt: FewShot = self.experiment.steps[last.step]
            file = prompt.worked(type(self.experiment.tasks[last.task]))
            worked = worked_rows(file, self._base(self.base_of(name))) if file is not None else ()
            limit = prompt.max_new_tokens or evaluation.max_new_tokens
            return work.asking_by_examples(prompt, rows, limit, worked)
        return work.asking(_stage(last), rows, evaluation.max_new_tokens)

    def _questions(self, name: str) -> int:
        evaluation = self.experiment.evaluation
        size = self.rows(name).sizes[evaluation.split]
        return min(evaluation.limit or size, size)

    def _course(self, name: str) -> TrainingSchedule:
        node, rows = self.workflow.node(name), self.rows(name)
        settings = {key: node.settings[key] for key in ("method", "stage", "training")}
        key = canonical_json([settings, node.task, self.base_of(name)])
        if key not in self._courses:
            training = Training.model_validate(node.settings["training"])
            self._courses[key] = work.course(_stage(node), training, rows.rows, rows.sizes)
        return self._courses[key]

    def _teacher(self, name: str) -> ModelShape | None:
        teacher = self.workflow.node(name).teacher
        return self.shape(teacher) if teacher else None

    def _looking(self, name: str) -> Work:
        """Return the work of the validations of a training."""
        node, course = self.workflow.node(name), self._course(name)
        looking, settings = course.looking(self.shape(name), self._teacher(name)), node.settings["training"]
        if settings["select_best_by"] != "accuracy" or not node.answers:
            return looking
        valid = self.rows(name).sizes["valid"]
        asked = self.answers(name, min(settings["validation_rows"] or valid, valid))
        return looking + asked * settings["num_validations"]

    def _reading(self, name: str, number: float, batch_size: int, learns: bool = False) -> Work:
        rows = self.rows(name).rows["valid"]
        return work.reading(rows, self.shape(name), number, batch_size, learns=learns)

    def _scoring(self, name: str, objective: str, scoring: str) -> Work:
        """Return the work of a scoring run; passages of a text are assumed as long as the task's rows."""
        importance, sizes, shape = self.experiment.importance, self.rows(name).sizes, self.shape(name)
        if scoring == "passes":
            number = min(importance.rows, sizes["train"])
            return self._reading(name, number, importance.batch_size, learns=True)
        if scoring.endswith(".gates"):
            gates = importance.gates
            return self._reading(name, gates.steps * gates.batch_size, gates.batch_size, learns=True)
        kind, metric = scoring.split(".")
        candidates = len(units_of(kind, shape))
        if metric in GREEDY:
            free = candidates - len(importance.greedy_protect)
            removals = self.workflow.greedy_removals(name, objective, scoring)
            removals = min(free, candidates - 1) if removals is None else removals
            candidates = sum(max(free - gone, 0) for gone in range(removals))
        number = min(importance.validation_rows, sizes[split_of(scoring)])
        if counts_answers(scoring):
            return self.answers(name, number) * candidates
        return self._reading(name, number, importance.batch_size) * candidates

    def _curve(self, curve: str, name: str) -> Work:
        """Return the work of a pruning curve: at each point all answers and their loss, as if unpruned."""
        settings = self.workflow.curve(curve)
        points = 1 + len(list(settings.lines())) * len(settings.remove)
        number = self._questions(name)
        reading = self._reading(name, number, self.experiment.importance.batch_size)
        asked = self.answers(name, number) if self._last(self.workflow.node(name)) else Work()
        return (reading + asked) * points

    def _latency(self) -> Work:
        """Return the work of measuring latency.

        Questions are answered one by one and in a batch, at natural and at forced length; worked examples are
        read anew with each question, and once before all questions.
        """
        latency, total = self.experiment.latency, Work()
        for name in self.workflow.timed:
            asked = self._asking(name)
            for way in dict.fromkeys((replace(asked, known=0), asked)):
                for number, size in ((latency.questions, 1), (latency.batch_size, latency.batch_size)):
                    once = work.answering(way, self.shape(name), number, size)
                    total += once * (2 * (1 + latency.repetitions))
        return total

    def _node_of(self, job: Job) -> str:
        """Return the node that a job works on."""
        if job.verb == "score":
            return job.name.split("/")[0]
        return job.name.split("/")[1] if job.verb == "curve" else job.name


def _stage(node: Node) -> Stage:
    """Return the stage of a training node."""
    return METHODS[node.method].stage_type.model_validate(node.settings["stage"])


def _part(name: str, settings: Mapping, size: Size) -> float:
    """Return the approximate number of weights of an extra module, see `copra.models.extra_modules`."""
    d, layers = size.shape.hidden, len(size.shape.layers)
    inside = size.parameters - size.outside
    told_by = settings.get("layers", 0)
    copied = inside + d * size.shape.vocabulary
    return {
        "projection": 2 * d * d,
        "mind_reader": 8 * d * d * layers,
        "emulator": size.parameters + 12 * d * d * layers + 12 * d * d,
        "step_decoder": copied if told_by is None else inside / layers * told_by,
    }[name]
