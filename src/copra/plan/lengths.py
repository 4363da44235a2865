"""The number of optimizer steps of each training stage, epochs resolved, before anything runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from copra.experiment.recipes import Node
from copra.plan.estimate import Estimate, stage_of
from copra.schema.training import Training
from copra.utils.errors import CopraError

FEW_STEPS = 300
"""Shorter stages cause a warning. Published numbers on GSM8K come from 3,000 steps and more; SmolLM2 135M,
trained by CoT on GSM8K, answered 13.0 percent after 327 steps and 14.4 after 654."""


@dataclass(frozen=True)
class TrainingLength:
    """The number of optimizer steps per stage, for consecutive `stages` of a step that are alike.

    `stages` is empty for a step without stages. With early stopping, `steps` is the maximum. `rows` is the
    size of the train split, `counted` is False if that is a guess, and `pretrained` is False for a base from
    scratch. `parts` is the number of parts that the longest of the stages goes through, each in a step or
    more.
    """

    step: str
    stages: tuple[int, ...]
    steps: int
    rows: int
    training: Training
    pretrained: bool
    counted: bool
    parts: int = field(compare=False)

    def __str__(self) -> str:
        ends = dict.fromkeys((*self.stages[:1], *self.stages[-1:]))
        which = f" stage{'s' * (len(ends) > 1)} {' to '.join(map(str, ends))}" if ends else ""
        most = "at most " if self.training.stop_early else ""
        return f"{self.step}{which}: {most}{self.steps:,} optimizer steps, {self._epochs()}"

    def shortness(self) -> str | None:
        """Return why each stage is short; None if it is not, or if that is intended.

        A model from scratch with explicit `steps` is not checked: toy models learn in a hundred.
        """
        key = "epochs" if self.training.steps is None else "steps"
        if self.steps >= FEW_STEPS or (key == "steps" and not self.pretrained):
            return None
        warmup = max(self.training.warmup_steps, round(self.training.warmup_ratio * self.steps))
        rising = f" ({min(warmup, self.steps)} of them warm-up)" if warmup else ""
        return (
            f"training.{key} gives a stage {self.steps} optimizer steps{rising}, which are few: "
            f"{self._epochs()}"
        )

    def endless_warmup(self) -> str | None:
        """Return the problem of stages that end before their warm-up does; None for other stages."""
        if self.training.warmup_steps <= self.steps or not self.counted:
            return None
        return (
            f"training.warmup_steps: {self.training.warmup_steps} are more than the {self.steps} optimizer "
            f"steps of a stage ({self._epochs()}), so the learning rate would never reach its peak. Lower "
            "them."
        )

    def skipped_parts(self) -> str | None:
        """Return the problem of stages with fewer steps than parts; None for other stages."""
        if self.steps >= self.parts or not self.counted:
            return None
        key = "epochs" if self.training.steps is None else "steps"
        return (
            f"training.{key}: a stage goes through {self.parts} parts, and has {self.steps} optimizer steps "
            f"({self._epochs()}). Raise it to {self.parts} steps or more."
        )

    def _epochs(self) -> str:
        epochs = self.training.epochs or self.steps * self.training.batch_size / self.rows
        of = f"{self.rows:,} rows in batches of {self.training.batch_size}"
        return f"{epochs:.3g} epoch{'s' * (epochs != 1)} of {of}"


def training_lengths(estimate: Estimate) -> list[TrainingLength]:
    """Return the lengths of all trainings in the order of the recipe tree, once for models trained alike."""
    first: dict[tuple[str, str, str, int | None], Node] = {}
    for node in estimate.workflow.tree.nodes.values():
        if node.kind == "train":
            base = estimate.base_of(node.name).split("@")[0]
            first.setdefault((node.step or "", node.task, base, node.stage), node)
    found = []
    for (step, _, base, stage), node in first.items():
        found.append(
            TrainingLength(
                step=step,
                stages=() if stage is None else (stage,),
                steps=estimate.schedule(node.name).steps,
                rows=estimate.rows(node.name).sizes["train"],
                training=Training.model_validate(node.settings["training"]),
                pretrained=estimate.experiment.bases[base].from_scratch is None,
                counted=estimate.rows(node.name).counted,
                parts=stage_of(node).least_steps,
            )
        )
    alike = groupby(found, key=lambda length: replace(length, stages=()))
    return [replace(length, stages=sum((each.stages for each in group), ())) for length, group in alike]


def check_lengths(lengths: Sequence[TrainingLength]) -> None:
    """Check that each stage is at least as long as its `warmup_steps` and its parts, epochs resolved.

    Raises:
        CopraError: stages are shorter. One line per problem, with the steps that have it.
    """
    checks = (TrainingLength.endless_warmup, TrainingLength.skipped_parts)
    problems = [f"steps.{steps}: {why}" for check in checks for why, steps in _together(lengths, check)]
    if problems:
        raise CopraError("\n".join(problems))


def length_warnings(lengths: Iterable[TrainingLength]) -> list[str]:
    """Return one warning line per reason for short stages, with the steps that have them."""
    found = _together(lengths, TrainingLength.shortness)
    return [f"steps.{steps}: {why}. Give {FEW_STEPS} 'steps' or more." for why, steps in found]


def early_stop_assumption(lengths: Iterable[TrainingLength]) -> list[str]:
    """Return a line about the steps whose trainings can stop early, or nothing if there are none."""
    names = dict.fromkeys(length.step for length in lengths if length.training.stop_early)
    return [f"{', '.join(names)}: all steps are taken; stop_early may end them before"] if names else []


def _together(
    lengths: Iterable[TrainingLength], said: Callable[[TrainingLength], str | None]
) -> Iterator[tuple[str, str]]:
    """Yield each text that `said` returns for some lengths, with the names of their steps."""
    steps: dict[str, dict[str, None]] = {}
    for length in lengths:
        if why := said(length):
            steps.setdefault(why, {})[length.step] = None
    return ((why, ", ".join(names)) for why, names in steps.items())
