"""The experiment: what a config file may say, with defaults, checks and a JSON schema."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from copra.methods import AnyMethod, Method
from copra.methods.few_shot import FewShot
from copra.schema.base import Base, Quantize
from copra.schema.curve import Curve
from copra.schema.names import name_problems
from copra.schema.pruning import Prune
from copra.schema.scoring import Importance
from copra.schema.settings import MOST_LATENTS, Name, Precision, Seed, Settings, describe, one_or_list
from copra.tasks import AnyTask
from copra.utils.errors import CopraError
from copra.utils.gpu import MOST_JOBS
from copra.utils.plain import check_plain
from copra.utils.problems import explain, hint, shown

AnyStep = Annotated[AnyMethod | FewShot | Prune | Quantize, Field(discriminator="kind")]


Steps = Annotated[
    Annotated[Name, Tag("one")] | Annotated[list[Name], Tag("list")], Discriminator(one_or_list)
]


class Recipe(Settings):
    """One recipe: a base and the steps that change it, in order."""

    base: Name | None = None
    """The base (null: the experiment's)."""
    steps: list[Name]
    """The steps, in the order in which they are applied."""


class Product(Settings):
    """Many recipes at once: every pruning with every method, after a common start."""

    base: Name | None = None
    """The base (null: the experiment's)."""
    start: list[Name] = Field(default_factory=list)
    """Steps that all of them begin with."""
    prunings: list[Steps] = Field(min_length=1)
    """What is pruned: each entry is a step, a list of steps, or an empty list for none."""
    methods: list[Steps] = Field(min_length=1)
    """What follows: each entry is a step or a list of steps."""


def _form_of_recipe(value: Any) -> str:
    """Which of the forms of a recipe is meant, so that only the problems of that form are told."""
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
    """How accuracy is measured."""

    split: Literal["valid", "test"] = "test"
    """Which questions. Choices are made on valid whatever stands here."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many questions (null: all)."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest generated text in tokens."""
    batch_size: int = Field(128, ge=1)
    """Questions decoded together."""
    compile: bool = False
    """Compile the pass over one token (torch.compile; CUDA graphs on a GPU), in evaluations and sweeps. It
    takes a minute or more, once a job, and pays on a GPU with many questions: there a token of a small batch
    costs mostly what starts its thousands of operations. Memory is held for the longest possible answer."""
    stages: bool = False
    """Also evaluate after each stage of a staged method, for its curve."""
    latents: list[Annotated[int, Field(ge=0, le=MOST_LATENTS)]] = Field(default_factory=list)
    """Also evaluate recipes that end with latents at each of these numbers of them, whatever they were
    trained with."""
    lens: int = Field(0, ge=0)
    """For so many questions, also look at what each latent would say through the LM head."""


class Latency(Settings):
    """How time is measured: batch 1 and a full batch, beside each other in one run."""

    questions: int = Field(16, ge=1)
    """Questions answered one by one."""
    batch_size: int = Field(64, ge=1)
    """Questions in the full batch."""
    repetitions: int = Field(3, ge=1)
    """Runs of which the median is taken, after one to warm up."""
    forced_tokens: int = Field(16, ge=1)
    """Generated tokens where the length is forced to be the same for all."""
    compile: bool = False
    """Measure compiled code, as `evaluation.compile` has it; compiling is not measured."""


class Compute(Settings):
    """What a job may use."""

    threads: int = Field(1, ge=1)
    """CPU threads of a process of a training, scoring or evaluation job. Part of a result: sums depend on
    it."""
    precision: Precision = "float32"
    """What trainings and evaluations compute in, where the device has it; elsewhere in float32. tf32: weights
    of float32, products of TF32 (NVIDIA GPUs from Ampere on). bfloat16: a training autocasts, with weights
    and moments as they are, and answers are computed with weights of bfloat16. Scores and prunings compute in
    the type of the weights. Results record what was used."""
    memory_mb: int = Field(4000, ge=100)
    """Memory of such a job, for the scheduler."""
    runtime_minutes: int = Field(240, ge=1)
    """Longest run of such a job, for the scheduler."""
    gpu: int = Field(0, ge=0)
    """GPUs of a training or an evaluation, for the scheduler; other jobs take one at most. A GPU that is
    there is used in any case."""
    jobs_per_gpu: int = Field(1, ge=1, le=MOST_JOBS)
    """Jobs that share one GPU of this machine, each with such a part of its memory as a limit: small models
    leave most of a large GPU idle. Latency is measured on a GPU alone. Under SLURM and Kubernetes, which give
    each job GPUs of its own, leave 1."""
    processes: int | None = Field(None, ge=1)
    """Processes that share a training or an evaluation (null: one a GPU). The batch stays as large as it is,
    and results agree but for rounding."""
    sharding: bool = False
    """What each process of a training holds: false, the whole model (DDP); true, a part of the weights, the
    gradients and the optimizer's moments (FSDP2), for models that do not fit one GPU."""
    save_every_seconds: int = Field(300, ge=0)
    """How often a training saves its state (0: after every step); a killed one goes on from there."""
    save_every_steps: int | None = Field(None, ge=1)
    """Save after each so many steps as well (null: by time alone)."""

    @property
    def workers(self) -> int:
        """Processes of a training or an evaluation."""
        return self.processes or max(1, self.gpu)


class Experiment(Settings):
    """All that a run depends on. One config file is one experiment."""

    name: Name | None = None
    """The folder of its results, below `results/` (null: the first config file's name without its ending).
    Experiments under one name overwrite each other's results."""
    task: Name
    """The task that recipes train on and are evaluated on."""
    tasks: dict[Name, AnyTask]
    """Tasks by name."""
    base: Name
    """The base of recipes that name none."""
    bases: dict[Name, Base]
    """Base models by name."""
    steps: dict[Name, AnyStep]
    """Trainings, prunings, prompts and quantizations by name."""
    recipes: list[AnyRecipe] = Field(min_length=1)
    """What is run: lists of steps, recipes with a base, or products of prunings and methods."""
    reference: str | None = None
    """The recipe that all others are compared with, such as `llama+cot`."""
    primary: str | None = None
    """The recipe whose comparison with `reference` the experiment is made for, named before anything is
    measured: its p-value stands as it is, and only the other comparisons are corrected for their number
    (null: all are)."""
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    """Every recipe is run once a seed, from where randomness first enters."""
    importance: Importance = Importance()
    """How units are scored."""
    curves: dict[Name, Curve] = Field(default_factory=dict)
    """Pruning curves by name: accuracy and loss as units go, before any fine-tuning."""
    evaluation: Evaluation = Evaluation()
    """How accuracy is measured."""
    latency: Latency | None = Latency()
    """How time is measured (null: not at all)."""
    compute: Compute = Compute()
    """What a job may use."""
    tracking: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Also hand training lines on to this tracker, which must be installed and then writes to
    results/<name>/tracking/<model>/ (null: to none). Nothing leaves the machine: W&B runs offline unless
    WANDB_MODE says otherwise. No part of a result."""
    code_fingerprint: bool = True
    """Whether a change of copra's own code reruns what depends on it."""

    @model_validator(mode="after")
    def _references(self) -> "Experiment":
        problems = []
        if self.task not in self.tasks:
            problems.append(f"task: {self.task!r} is not in tasks{hint(self.task, self.tasks)}")
        if self.base not in self.bases:
            problems.append(f"base: {self.base!r} is not in bases{hint(self.base, self.bases)}")
        for table in ("tasks", "bases", "steps", "curves"):
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


def _unshardable(method: Method) -> list[str]:
    """What a training asks for that sharded weights do not allow."""
    trainings = [method.training_of(stage) for stage in method.stages()]
    problems = []
    if any(training.select_best_by == "accuracy" for training in trainings):
        problems.append(
            "training.select_best_by: with compute.sharding no process has the whole model to answer with; "
            "select by loss, or set compute.sharding: false"
        )
    if any(training.lora for training in trainings):
        problems.append(
            "training.lora: low-rank adapters are not sharded, and need not be; set compute.sharding: false"
        )
    return problems


def parse(config: Mapping[str, Any], source: str = "config.yaml") -> Experiment:
    """Check a config.

    Raises:
        CopraError: a line for every problem, with the path of its key.
    """
    check_plain(config, source)
    try:
        return Experiment.model_validate(config)
    except ValidationError as error:
        schema = _bare_schema()
        lines = dict.fromkeys(line for problem in error.errors() for line in explain(problem, config, schema))
        raise CopraError("\n".join(f"{source}: {line}" for line in lines)) from None


def name_of(file: str) -> str:
    """The name of an experiment whose config, in `file`, gives none: the file's name without its ending.

    Raises:
        CopraError: it cannot name a folder of results.
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
    """The JSON schema of a config without descriptions, which take most of its time."""
    return TypeAdapter(Experiment).json_schema()


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = TypeAdapter(Experiment).json_schema()
    describe(schema)
    return schema
