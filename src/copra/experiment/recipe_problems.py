"""Problems of the recipes of a config: steps that cannot follow the steps before them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from copra.experiment.config import AnyStep, Experiment
from copra.methods import Method
from copra.methods.few_shot import FewShot
from copra.methods.icot_kd import IcotKd
from copra.methods.method import Stage
from copra.methods.registry import ALL_METHODS
from copra.schema.base import FromScratch, Quantize
from copra.schema.metrics import GREEDY, NEEDS_ANSWERS
from copra.schema.pruning import Prune
from copra.tasks.task import Task, read_worked_examples
from copra.utils.problems import hint, shown

MOST_TEACHERS = 20
"""Maximum length of a chain of teachers, each of which learns from the next."""
TOO_MANY_TEACHERS = (
    f"more than {MOST_TEACHERS} teachers learn one from the other; name one that was taught by fewer"
)


@dataclass
class Known:
    """The findings of the checks of recipes, so that each is found once.

    `teachers` are the checked teachers: the length of the chain of teachers behind each, or its first
    problem. They are not checked again: their own teachers do not learn from them, or the first check would
    have found the cycle. `last_stages` are the last stages of training steps by name.
    """

    teachers: dict[str, int | list[str]] = field(default_factory=dict)
    last_stages: dict[str, Stage] = field(default_factory=dict)

    def last_stage(self, experiment: Experiment, name: str) -> Stage:
        """Return the last stage of the training step `name`."""
        if name not in self.last_stages:
            step = experiment.steps[name]
            assert isinstance(step, Method), name
            self.last_stages[name] = list(step.stages().values())[-1]
        return self.last_stages[name]


def recipe_problems(
    experiment: Experiment,
    base: str,
    steps: list[str],
    pupils: tuple[str, ...] = (),
    known: Known | None = None,
) -> Iterator[str]:
    """Yield the problems of one recipe, whose model teaches the steps `pupils` if there are any.

    If a chain of teachers is too long, the last problem is `TOO_MANY_TEACHERS`, and the search ends: the
    number of recipes to check can double with each teacher. `known` collects what was found.
    """
    known = known or Known()
    if len(pupils) > MOST_TEACHERS:
        yield TOO_MANY_TEACHERS
        return
    if base not in experiment.bases:
        yield f"{shown(base)} is not in bases{hint(base, experiment.bases)}"
        return
    if unknown := [step for step in steps if step not in experiment.steps]:
        for name in dict.fromkeys(unknown):
            yield f"{shown(name)} is not in steps{hint(name, experiment.steps)}"
        return
    for name in sorted({step for step in steps if steps.count(step) > 1}):
        yield f"comes back to step {name!r}; to do the same again, declare it under a second name"
    walk = _Walk(experiment, base, pupils, known, experiment.task)
    for name in steps:
        for problem in walk.take(name):
            yield problem
            if problem == TOO_MANY_TEACHERS:
                return
    if walk.method is None and (walk.scratch or not pupils):
        yield "never trains, so it has no way to answer; add a training step"


@dataclass
class _Walk:
    """A walk along the steps of a recipe, with what the steps so far have made of its model.

    `method` is how the model answers, `learned` the method of its last training: a prompt changes only the
    former.
    """

    experiment: Experiment
    base: str
    pupils: tuple[str, ...]
    known: Known
    task: str
    method: str | None = None
    learned: str | None = None
    pruned: bool = False
    quantized: str | None = None
    taken: list[str] = field(default_factory=list)

    @property
    def scratch(self) -> FromScratch | None:
        """The settings of a base from scratch, which knows nothing before a training; None for others."""
        return self.experiment.bases[self.base].from_scratch

    def take(self, name: str) -> Iterator[str]:
        """Yield the problems of the next step, and take it."""
        step = self.experiment.steps[name]
        if self.quantized is not None:
            final = self.quantized
            yield f"{name!r} comes after {final!r}, whose weights are final: put {final!r} last"
        if isinstance(step, Method):
            yield from self._train(name, step)
        elif isinstance(step, FewShot):
            yield from self._prompt(name, step)
        elif isinstance(step, Prune):
            yield from self._prune(name, step)
        elif isinstance(step, Quantize):
            yield from self._quantize(name)
        self.taken.append(name)

    def _train(self, name: str, step: Method) -> Iterator[str]:
        task = step.task or self.experiment.task
        if self.learned is not None and task != self.task:
            yield (
                f"{name!r} trains on task {task!r} after a training on {self.task!r}; "
                "a recipe stays with one task"
            )
        if step.needs_steps and not self.experiment.tasks[task].has_steps:
            yield (
                f"{name!r} learns from steps, and task {task!r} has none: name their column under "
                "columns.steps, or take no_cot, pause or looped"
            )
        if (
            self.scratch
            and not self.pruned
            and self.known.last_stage(self.experiment, name).copies_pretrained
        ):
            yield (
                f"{name!r} starts its decoder as a base from scratch, which knows nothing: write "
                "auxiliary_decoder.decoder: small"
            )
        pupils = (*self.pupils, name)
        if isinstance(step, IcotKd):
            yield from _teacher_problems(self.experiment, name, step, self.learned, pupils, self.known)
        elif step.distil is not None:
            before = [self.base, *self.taken]
            yield from _distil_problems(self.experiment, name, step, before, pupils, self.known)
        self.task, self.method, self.learned = task, step.kind, step.kind

    def _prompt(self, name: str, step: FewShot) -> Iterator[str]:
        if self.scratch and self.method is None:
            yield f"{name!r} prompts a base from scratch, which knows nothing: put a training before it"
        if self.learned == "looped":
            yield (
                f"{name!r} prompts after {self.learned}, which answers at once and with its loop: leave it "
                "out, or put a training without a loop before it"
            )
        yield from _prompt_problems(name, step, self.task, self.experiment.tasks[self.task])
        self.method = step.kind

    def _prune(self, name: str, step: Prune) -> Iterator[str]:
        if self.learned is not None and (reason := ALL_METHODS[self.learned].unprunable):
            yield f"{name!r} prunes after {self.learned}, {reason}: prune before it"
        if self.scratch and self.method is None and step.scoring:
            yield f"{name!r} scores a base from scratch before any training: put a training before it"
        yield from _scoring_problems(self.experiment, name, step, self.method, self.learned)
        self.pruned = True

    def _quantize(self, name: str) -> Iterator[str]:
        if self.scratch and self.scratch.architecture == "gpt2":
            yield f"{name!r} quantizes linear layers, which GPT-2 does not have: leave it out"
        if self.pupils:
            yield f"{name!r} quantizes, and a model of whole numbers is no teacher: leave it out"
        self.quantized = name


def _prompt_problems(name: str, step: FewShot, task: str, settings: Task) -> Iterator[str]:
    """Yield the problems of a prompt for the task of this name and these settings."""
    if step.answer != "strict" and settings.answers != "number":
        yield f"{name!r} takes a number for the answer; {task!r} needs answer: strict"
    if (worked := step.worked(type(settings))) is not None and step.num_fewshot > (
        most := len(read_worked_examples(worked))
    ):
        yield (
            f"{name!r} asks for {step.num_fewshot} examples, and copra has {most} for {task!r}: lower "
            "'num_fewshot', name a file, or draw them from the train split (examples: train)"
        )


def _scoring_problems(
    experiment: Experiment, name: str, step: Prune, method: str | None, learned: str | None
) -> Iterator[str]:
    """Yield the problems of scoring a model for a pruning.

    `method` is the method by which the model answers, `learned` that of its last training; None: none yet.
    """
    if step.scoring is None:
        return
    if method is None and step.metric in NEEDS_ANSWERS:
        yield f"{name!r} scores by accuracy, but the model cannot answer yet: put a training before it"
    count, found = step.budget.count, experiment.importance.greedy_removals
    if step.metric in GREEDY and count is not None and found is not None and count > found:
        yield (
            f"{name!r} removes {count} layers, of which the greedy search finds {found}: raise "
            "importance.greedy_removals to that, or leave it out"
        )
    objective = experiment.importance.objective_of(step.objective)
    if objective == "text" and experiment.importance.text is None:
        yield f"{name!r} scores on a text, and there is none: name it under importance.text"
    if objective == "latent" and learned is None:
        yield f"{name!r} scores on the model's own latents before any training: take objective cot or answer"


def _teacher_problems(
    experiment: Experiment,
    name: str,
    step: IcotKd,
    learned: str | None,
    pupils: tuple[str, ...],
    known: Known,
) -> Iterator[str]:
    """Yield the problems of the teacher of an iCoT-KD step.

    `learned` is the method of the last training before the step.
    """
    if step.teacher is None:
        writing = [kind for kind, each in ALL_METHODS.items() if each.writes_steps]
        if learned not in writing:
            yield (
                f"{name!r} learns from the model before it, which has to write its chain of thought: put a "
                f"training of kind {' or '.join(writing)} before it, or name a teacher"
            )
        return
    problems = _named_problems(experiment, name, step.teacher, pupils, known)
    yield from problems
    if not problems:
        teacher = _last_training(experiment, step.teacher.split("+")[1:])
        if teacher is None or not ALL_METHODS[experiment.steps[teacher].kind].writes_steps:
            yield f"teacher of {name!r}: {shown(step.teacher)} does not write its chain of thought"


def _distil_problems(
    experiment: Experiment,
    name: str,
    step: Method,
    before: list[str],
    pupils: tuple[str, ...],
    known: Known,
) -> Iterator[str]:
    """Yield the problems of a distillation step's teacher; `before` holds the base and earlier steps."""
    assert step.distil is not None
    named = step.distil.teacher
    problems = [] if named is None else _named_problems(experiment, name, named, pupils, known)
    if problems:
        yield from problems
        return
    base, *steps = before if named is None else named.split("+")
    teacher = _last_training(experiment, steps)
    if named is None:
        changes = [each for each in map(experiment.steps.get, steps) if not isinstance(each, FewShot)]
        if teacher is None and experiment.bases[base].from_scratch:
            yield f"{name!r} learns from a base from scratch, which knows nothing: name a teacher"
        elif not step.distil.task_weight and not (changes and isinstance(changes[-1], Prune)):
            yield (
                f"{name!r} starts from its own teacher, so there is nothing to learn: put a pruning before "
                "it, name a teacher, or raise distil.task_weight"
            )
    own = known.last_stage(experiment, name)
    theirs = None if teacher is None else known.last_stage(experiment, teacher)
    fed = theirs.latent_input if theirs is not None and theirs.has_recurrent_latents else None
    if (
        own.has_recurrent_latents
        and own.latent_input != fed
        and (fed is not None or own.latent_input == "projected")
    ):
        yield (
            f"{name!r} has latents with latent_input: {own.latent_input}, and its teacher "
            f"{f'with {fed}' if fed else 'has none'}: name a teacher that was trained as {name!r} trains"
        )


def _named_problems(
    experiment: Experiment, name: str, teacher: str, pupils: tuple[str, ...], known: Known
) -> list[str]:
    """Return the problems of the recipe `teacher` that the step `name` names as its teacher."""
    if isinstance(length := known.teachers.get(teacher), int):
        return [TOO_MANY_TEACHERS] if len(pupils) + length > MOST_TEACHERS + 1 else []
    base, *steps = teacher.split("+")
    if own := [pupil for pupil in pupils if pupil in steps]:
        return [f"{own[0]!r} has itself for a teacher: {shown(teacher)}"]
    problems = length or list(recipe_problems(experiment, base, steps, pupils, known))
    if TOO_MANY_TEACHERS in problems:
        # This depends on the pupils, so it is not cached; all other problems are the same for all pupils.
        return [TOO_MANY_TEACHERS]
    if problems:
        known.teachers[teacher] = problems[:1]
        return [f"teacher of {name!r}: {problem}" for problem in problems]
    named = (named_teacher(experiment.steps[step]) for step in steps)
    behind = [known.teachers.get(each) for each in named if each is not None]
    known.teachers[teacher] = 1 + max((length for length in behind if isinstance(length, int)), default=0)
    return []


def named_teacher(step: AnyStep) -> str | None:
    """Return the recipe of the teacher that a step names, or None."""
    if isinstance(step, IcotKd):
        return step.teacher
    return step.distil.teacher if isinstance(step, Method) and step.distil else None


def _last_training(experiment: Experiment, steps: list[str]) -> str | None:
    """Return the name of the last training of these steps, or None."""
    found = [step for step in steps if isinstance(experiment.steps.get(step), Method)]
    return found[-1] if found else None
