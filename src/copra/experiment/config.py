"""The settings of an experiment: all keys of a config file, with defaults, checks and a JSON schema."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from copra.methods import Method
from copra.methods.few_shot import FewShot
from copra.methods.registry import AnyMethod
from copra.schema.base import Base, Quantize
from copra.schema.contrast import Contrast
from copra.schema.conversion import Conversions
from copra.schema.curve import Curve
from copra.schema.latents import LatentSource
from copra.schema.names import name_problems
from copra.schema.pruning import Prune
from copra.schema.scoring import Importance
from copra.schema.settings import MOST_LATENTS, Name, Precision, Seed, Settings, describe, one_or_list
from copra.tasks.registry import AnyTask
from copra.tasks.task import SPLITS
from copra.utils.errors import CopraError
from copra.utils.gpu import MOST_JOBS
from copra.utils.plain import check_plain
from copra.utils.problems import explain, hint, shown

if TYPE_CHECKING:
    AnyStep = Method | FewShot | Prune | Quantize
else:
    AnyStep = Annotated[AnyMethod | FewShot | Prune | Quantize, Field(discriminator="kind")]


Steps = Annotated[
    Annotated[Name, Tag("one")] | Annotated[list[Name], Tag("list")], Discriminator(one_or_list)
]


class Recipe(Settings):
    """One recipe: a base and the steps that change it, in order."""

    base: Name | None = None
    """Name of the base (null: the experiment's `base`)."""
    steps: list[Name]
    """Names of the steps, in the order in which they are applied."""


class Product(Settings):
    """A set of recipes: every pruning combined with every method, after a common start."""

    base: Name | None = None
    """Name of the base (null: the experiment's `base`)."""
    start: list[Name] = Field(default_factory=list)
    """Names of the steps that all recipes begin with."""
    prunings: list[Steps] = Field(min_length=1)
    """Pruning alternatives: each entry is a step, a list of steps, or an empty list for no pruning."""
    methods: list[Steps] = Field(min_length=1)
    """Method alternatives after the pruning: each entry is a step or a list of steps."""


def _form_of_recipe(value: Any) -> str:
    """Return the tag of a recipe's form; pydantic then reports only the problems of that form."""
    if isinstance(value, Recipe | Product):
        return type(value).__name__.lower()
    if isinstance(value, Mapping):
        return "product" if {"start", "prunings", "methods"} & set(value) else "recipe"
    return "list"


AnyRecipe = Annotated[
    Annotated[list[Name], Tag("list")]
    | Annotated[Recipe, Tag("recipe")]
    | Annotated[Product, Tag("product")],
    Discriminator(_form_of_recipe),
]


class Evaluation(Settings):
    """Settings of the accuracy measurement."""

    split: Literal["valid", "test"] = "test"
    """Split whose questions are answered. Checkpoints and units are always selected without the test
    split."""
    limit: int | None = Field(None, ge=1)
    """Number of questions to answer, from the start of the split (null: all)."""
    max_new_tokens: int = Field(256, ge=1)
    """Maximum number of generated tokens per answer."""
    batch_size: int = Field(128, ge=1)
    """Number of questions decoded together."""
    compile: bool = False
    """If true, the forward pass over one token is compiled (torch.compile; CUDA graphs on a GPU) in
    evaluations and sweeps, but not where latents are replaced (`latents_from`). Compiling takes a minute or
    more per job. It pays on a GPU with many questions, where launching thousands of operations dominates the
    cost of a token in a small batch. Memory is reserved for the longest possible answer."""
    stages: bool = False
    """If true, models are also evaluated after each stage of a staged method, for the curriculum figure."""
    starts: bool = False
    """If true, the model that a recipe's last training step started from is evaluated too, such as the healed
    model before Coconut; the table of accuracy against FLOPs then shows that model (`start`), its accuracy,
    and the number of optimizer steps that have healed it since its last pruning."""
    tasks: list[Name] = Field(default_factory=list)
    """Names of other tasks that the last models of all recipes are evaluated on too, such as further test
    sets or longer questions. Only the split that `split` names is needed of them. Questions that are among a
    model's own training or validation questions are left out."""
    latents: list[Annotated[int, Field(ge=0, le=MOST_LATENTS)]] = Field(default_factory=list)
    """Numbers of latents at which recipes that end with latents are also evaluated, independent of the number
    that they were trained with."""
    latents_from: list[LatentSource] = Field(default_factory=list)
    """Sources of latents with which recipes that end with latents that are hidden states are also evaluated.
    The inputs at the latent positions are replaced; the positions still attend to the question. own: as
    trained, always included. other: those of another question, with another gold answer where possible. mean:
    the mean over all evaluated questions at each position. zeros: zero vectors. drop_last: own, one latent
    fewer. The accuracy of own minus that of other is what the latents carry."""
    lens: int = Field(0, ge=0)
    """Number of questions for which each latent is also decoded through the LM head (logit lens)."""


class Latency(Settings):
    """Settings of the latency measurement, with batch size 1 and with a full batch in the same run."""

    questions: int = Field(16, ge=1)
    """Number of questions answered one at a time."""
    batch_size: int = Field(64, ge=1)
    """Number of questions in the full batch."""
    repetitions: int = Field(3, ge=1)
    """Number of timed runs, of which the median is reported. One warmup run precedes them."""
    forced_tokens: int = Field(16, ge=1)
    """Number of generated tokens per answer in the runs that force equal lengths."""
    compile: bool = False
    """If true, compiled code is timed, as in `evaluation.compile`. The time of compiling does not count."""


class Compute(Settings):
    """Resources of a job."""

    threads: int = Field(1, ge=1)
    """Number of CPU threads per process of a training, scoring or evaluation job. Part of a result, as sums
    depend on it."""
    precision: Precision = "float32"
    """Precision of trainings and evaluations; float32 on devices that do not support it. tf32: float32
    weights, TF32 products (NVIDIA GPUs from Ampere on). bfloat16: a training autocasts and keeps the type of
    weights and moments; answers are computed with bfloat16 weights. Scoring and pruning compute in the type
    of the weights. Results record the precision that was used."""
    memory_mb: int = Field(4000, ge=100)
    """Memory in MB that a training, scoring or evaluation job requests from the scheduler."""
    runtime_minutes: int = Field(240, ge=1)
    """Most minutes that a training, scoring or evaluation job requests from the scheduler. The first two
    attempts of a job whose time can be estimated request less where it is short."""
    gpu: int = Field(0, ge=0)
    """Number of GPUs that a training or an evaluation requests from the scheduler; other jobs request one at
    most. Jobs use a GPU that they find even at 0."""
    jobs_per_gpu: int = Field(1, ge=1, le=MOST_JOBS)
    """Number of jobs that share one GPU of this machine, each limited to an equal share of its memory: small
    models leave most of a large GPU idle. Latency is always measured on a GPU without other jobs. Keep 1
    under SLURM and Kubernetes, which give each job its own GPUs."""
    processes: int | None = Field(None, ge=1)
    """Number of processes that share a training or an evaluation (null: one per GPU). The batch size does not
    change, and results agree up to rounding."""
    sharding: bool = False
    """If true, each process of a training holds a part of the weights, gradients and optimizer moments
    (FSDP2), for models that do not fit on one GPU; if false, the whole model (DDP)."""
    save_every_seconds: int = Field(300, ge=0)
    """Interval in seconds at which a training saves its state (0: after every step). A training that was
    killed resumes from that state."""
    save_every_steps: int | None = Field(None, ge=1)
    """Number of optimizer steps after which a training also saves its state (null: by time alone)."""

    @property
    def workers(self) -> int:
        """The number of processes of a training or an evaluation."""
        return self.processes or max(1, self.gpu)


class Experiment(Settings):
    """All settings of an experiment. One config file is one experiment."""

    name: Name | None = None
    """Name of the results folder below `results/` (null: the first config file's name without its suffix).
    Experiments with the same name overwrite each other's results."""
    task: Name
    """Name of the task that recipes train on and are evaluated on."""
    tasks: dict[Name, AnyTask]
    """Tasks by name."""
    base: Name
    """Name of the base for recipes that name none."""
    bases: dict[Name, Base]
    """Base models by name."""
    steps: dict[Name, AnyStep]
    """Trainings, prunings, prompts and quantizations by name."""
    recipes: list[AnyRecipe] = Field(min_length=1)
    """Recipes to run: lists of steps, recipes with a base, or products of prunings and methods."""
    reference: str | None = None
    """Recipe that all others are compared with, such as `llama+cot`."""
    contrasts: dict[Name, Contrast] = Field(default_factory=dict)
    """Contrasts by name: sums and differences of the accuracies of recipes, with statistics over seeds."""
    primary: str | None = None
    """Recipe whose comparison with `reference` is the purpose of the experiment, or contrast that is, to be
    named before anything is measured. Its p-value is not corrected; the p-values of the other comparisons are
    corrected for their number (null: all are corrected)."""
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    """Random seeds. Every recipe runs once per seed, from its first random step on."""
    importance: Importance = Importance()
    """Settings of importance scoring."""
    curves: dict[Name, Curve] = Field(default_factory=dict)
    """Pruning curves by name: accuracy and loss as more and more units are removed, without fine-tuning."""
    evaluation: Evaluation = Evaluation()
    """Settings of the accuracy measurement."""
    latency: Latency | None = Latency()
    """Settings of the latency measurement (null: latency is not measured)."""
    conversions: Conversions | None = None
    """Models in the formats of other programs: their size, accuracy and time (null: none)."""
    compute: Compute = Compute()
    """Resources of a job."""
    tracking: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Experiment tracker that also receives the training metrics (null: none). It must be installed, and
    writes to results/<name>/tracking/<model>/. Nothing is uploaded: W&B runs offline unless WANDB_MODE is
    set. Not part of a result."""
    code_fingerprint: bool = True
    """If true, a change of copra's own code reruns the jobs that depend on it."""

    @model_validator(mode="after")
    def _references(self) -> "Experiment":
        problems = []
        if self.task not in self.tasks:
            problems.append(f"task: {self.task!r} is not in tasks{hint(self.task, self.tasks)}")
        if self.base not in self.bases:
            problems.append(f"base: {self.base!r} is not in bases{hint(self.base, self.bases)}")
        problems += self._task_problems()
        for table in ("tasks", "bases", "steps", "curves", "contrasts"):
            problems += [
                f"{table}.{name}: {problem}" for name, problem in name_problems(getattr(self, table))
            ]
        problems += [f"name: {problem}" for _, problem in name_problems([self.name] if self.name else [])]
        for name, step in self.steps.items():
            if re.search(r"\.\d+$", name):
                problems.append(f"steps.{name}: a step's name must not end like a stage, in a dot and digits")
            task = getattr(step, "task", None)
            if task is not None and task not in self.tasks:
                problems.append(f"steps.{name}.task: {task!r} is not in tasks{hint(task, self.tasks)}")
            if self.compute.sharding and isinstance(step, Method):
                problems += [f"steps.{name}.{problem}" for problem in _unshardable(step)]
        if len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds: {shown(self.seeds)} has a seed twice")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _task_problems(self) -> Iterator[str]:
        """Yield the problems of tasks that lack a split, and of those that models are also asked."""
        trained = {"task": self.task}
        for name, step in self.steps.items():
            if isinstance(step, Method) and step.task is not None:
                trained[f"steps.{name}.task"] = step.task
        for key, name in trained.items():
            task = self.tasks.get(name)
            if task is not None and (missing := [split for split in SPLITS if split not in task.splits]):
                yield (
                    f"{key}: {name!r} has no {' and '.join(missing)} split, and a task to train on needs all "
                    f"three; give tasks.{name} rows for it"
                )
        asked, split = self.evaluation.tasks, self.evaluation.split
        for name in dict.fromkeys(asked):
            if name not in self.tasks:
                yield f"evaluation.tasks: {shown(name)} is not in tasks{hint(name, self.tasks)}"
            elif split not in self.tasks[name].splits:
                yield (
                    f"evaluation.tasks: {name!r} has no {split} split, which evaluation.split names; give it "
                    "rows, or leave it out"
                )
            if asked.count(name) > 1:
                yield f"evaluation.tasks: {shown(name)} is given twice"


def _unshardable(method: Method) -> list[str]:
    """Return the problems of a training whose settings do not work with sharded weights."""
    trainings = [method.training_of(stage) for stage in method.stages()]
    problems = []
    if any(training.select_best_by == "accuracy" for training in trainings):
        problems.append(
            "training.select_best_by: with compute.sharding no process has the whole model to answer with; "
            "select by loss, or set compute.sharding: false"
        )
    if any(training.stop_early and training.stop_early.target_accuracy for training in trainings):
        problems.append(
            "training.stop_early.target_accuracy: with compute.sharding no process has the whole model to "
            "answer with; stop by target_loss or patience, or set compute.sharding: false"
        )
    if any(training.lora for training in trainings):
        problems.append(
            "training.lora: low-rank adapters are not sharded, and need not be; set compute.sharding: false"
        )
    return problems


def parse(config: Mapping[str, Any], source: str = "config.yaml") -> Experiment:
    """Return the experiment of a config, after all checks.

    Raises:
        CopraError: one line per problem, with the path of its key.
    """
    check_plain(config, source)
    try:
        return Experiment.model_validate(config)
    except ValidationError as error:
        schema = _bare_schema()
        lines = dict.fromkeys(line for problem in error.errors() for line in explain(problem, config, schema))
        raise CopraError("\n".join(f"{source}: {line}" for line in lines)) from None


def name_of(file: str) -> str:
    """Return the default name of an experiment: the name of its config file without the suffix.

    Raises:
        CopraError: the file's name is not legal as the name of a results folder.
    """
    stem = Path(file).stem
    try:
        return TypeAdapter(Name).validate_python(stem)
    except ValidationError:
        raise CopraError(
            f"{file}: {stem!r} cannot name the folder of results: a name has at most 60 letters, digits, "
            "'.', '_' and '-', and begins with a letter or a digit. Set `name` in the config."
        ) from None


@cache
def _bare_schema() -> dict[str, Any]:
    """Return the JSON schema of a config without descriptions, which take most of the time to make."""
    return TypeAdapter(Experiment).json_schema()


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, for editors."""
    schema = TypeAdapter(Experiment).json_schema()
    describe(schema)
    return schema
