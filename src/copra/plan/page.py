"""A forecast as text."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import JustifyMethod

from copra.experiment.contrast_problems import contrast_notes
from copra.experiment.recipes import training_notes, without_seed
from copra.experiment.workflow import Workflow
from copra.plan.estimate import STATE_COPIES
from copra.plan.forecast import ANSWERS, ZERO, Forecast, Line, Range, total
from copra.plan.jobs import MODELS
from copra.plan.machine import LAYER_SECONDS
from copra.plan.surroundings import disk_note
from copra.utils.quantities import amount, duration
from copra.utils.terminal import table

UNKNOWN = "?"


def page(forecast: Forecast, workflow: Workflow, source: str) -> str:
    """Return the whole page: counts, one line per step and per rule, sums, warnings and assumptions."""
    lines = list(forecast.lines.values())
    to_run = [line for line in lines if not line.job.cached]
    rules = [line.job.rule for line in lines if line.job.rule in MODELS]
    counted = ", ".join(f"{rules.count(rule)} {rule}" for rule in MODELS if rule in rules)
    lists = {
        "Prunings far from their budgets": forecast.warnings,
        "Trainings of few steps": forecast.short,
        "Notes": [
            *filter(None, [_disk_note(workflow.folder, to_run)]),
            *training_notes(workflow.experiment, workflow.tree),
            *contrast_notes(workflow.experiment, workflow.tree),
        ],
        "Assumed": list(_assumed(forecast)),
    }
    return "\n\n".join(
        [
            f"{source}: {len(workflow.tree.recipes)} recipes, {len(rules)} models ({counted})\n"
            f"{len(lines)} jobs: {len(lines) - len(to_run)} cached, {len(to_run)} to run",
            _steps(forecast, workflow),
            _rules(lines),
            "\n".join(_sums(forecast, workflow.folder, lines, to_run)),
            *(
                "\n".join([f"{heading}:", *(f"- {each}" for each in texts)])
                for heading, texts in lists.items()
                if texts
            ),
        ]
    )


def span(values: Range, text: Callable[[float], str] = amount) -> str:
    """Return a range as text, or its only value."""
    return " to ".join(dict.fromkeys(map(text, values)))


def _bytes(number: float) -> str:
    return amount(number, "B")


def _flops(number: float) -> str:
    return amount(number, "FLOPs")


def _steps(forecast: Forecast, workflow: Workflow) -> str:
    """Return a table with one row per step and stage, over all models that it makes, cached or not."""
    groups: dict[str, list[Line]] = {_label(name): [] for name in workflow.tree.nodes}
    for line in forecast.lines.values():
        if line.job.rule in (*MODELS, *ANSWERS):
            groups[_label(line.job.name)].append(line)
    rows = []
    for label, lines in groups.items():
        models = [line for line in lines if line.job.rule in MODELS]
        lengths = sorted({line.steps for line in models if line.steps is not None})
        steps = " to ".join(dict.fromkeys(f"{number:,}" for number in (*lengths[:1], *lengths[-1:])))
        memory = max(line.memory[0] for line in models), max(line.memory[1] for line in models)
        costs = [
            span(total(line.training for line in lines)),
            span(total(line.flops for line in lines if line.job.rule in ANSWERS)),
            span(total(line.seconds for line in lines), duration),
            span(total(line.disk for line in lines), _bytes),
            span(memory, _bytes) if memory[1] else "",
        ]
        if any(line.flops is None for line in lines):
            costs = [UNKNOWN] * len(costs)
        rows.append([label, len(models), sum(line.job.cached for line in models), steps, *costs])
    costs = ["training FLOPs", "evaluation FLOPs", "time", "disk", "peak memory"]
    return _table(rows, ["the whole run", "models", "cached", "steps", *costs])


def _rules(lines: Sequence[Line]) -> str:
    """Return a table with one row per rule; FLOPs and time are those of the jobs to run."""
    rows = []
    for rule in dict.fromkeys(line.job.rule for line in lines):
        jobs = [line for line in lines if line.job.rule == rule]
        left = [line for line in jobs if not line.job.cached]
        costs = [
            span(total(line.flops for line in left)),
            span(total(line.seconds for line in left), duration),
        ]
        if any(line.flops is None for line in left):
            costs = [UNKNOWN] * len(costs)
        rows.append([rule, len(jobs), len(jobs) - len(left), len(left), *costs])
    return _table(rows, ["what is left", "jobs", "cached", "to run", "FLOPs", "time"])


def _sums(forecast: Forecast, folder: str, lines: Sequence[Line], to_run: Sequence[Line]) -> Iterator[str]:
    """Yield the totals or, if sizes of bases are unknown, the commands that make them known."""
    if forecast.unknown:
        yield from _unknown(forecast.unknown, folder)
        return
    if not to_run:
        yield "Nothing is to run."
    else:
        flops = [
            total(line.training for line in to_run),
            total(line.flops for line in to_run if line.job.rule in ANSWERS),
            total(line.flops for line in to_run),
        ]
        seconds = total(line.seconds for line in to_run)
        chain_seconds, chain = forecast.longest_chain()
        yield (
            f"To run: {span(flops[0], _flops)} of training, {span(flops[1], _flops)} of evaluation, "
            f"{span(flops[2], _flops)} with the rest\n(validation, scoring, curves, latency, conversions): "
            f"{_device_hours(forecast, to_run)}, {span(seconds, duration)} one job after another."
        )
        yield f"Longest chain: {duration(chain_seconds)}, however many jobs run side by side:"
        yield "  " + " > ".join(_label(job.name) if job.rule in MODELS else job.rule for job in chain)
    if done := [line for line in lines if line.job.cached]:
        yield f"Cached: {span(total(line.flops for line in done), _flops)}, {_device_hours(forecast, done)}."
    disk = f"Disk: {span(total(line.disk for line in lines), _bytes)} of checkpoints"
    state = _state_bytes(to_run)
    yield disk + (f", and up to {_bytes(state)} for each training under way." if state else ".")
    if memory := max((line.memory[1] for line in to_run), default=0.0):
        yield f"Peak memory of a training: {_bytes(memory)} in each process."


def _state_bytes(to_run: Sequence[Line]) -> float:
    """Return the bytes of the largest state of a training."""
    return STATE_COPIES * max((line.disk[1] for line in to_run if line.job.rule == "train"), default=0.0)


def _disk_note(folder: str, to_run: Sequence[Line]) -> str | None:
    return disk_note(Path(folder), total(line.disk for line in to_run)[1] + _state_bytes(to_run))


def _device_hours(forecast: Forecast, lines: Sequence[Line]) -> str:
    devices = forecast.machine.devices
    ranges = [(line.seconds or ZERO, devices(line.job.rule)) for line in lines]
    low, high = (sum(seconds[bound] * number for seconds, number in ranges) / 3600 for bound in (0, 1))
    return f"{span((low, high), '{:.2g}'.format)} {'GPU' if forecast.machine.has_gpu else 'CPU'}-hours"


def _unknown(bases: Mapping[str, str], folder: str) -> Iterator[str]:
    yield "No FLOPs, hours and disk: the sizes of a base are not known before it is fetched or made."
    for node, path in bases.items():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            yield f"  {node}: its sizes alone come with `hf download {path} config.json`"
        yield f"  {node}: `snakemake {folder}/models/{node}/copra.json` makes it"


def _assumed(forecast: Forecast) -> Iterable[str]:
    machine, measured = forecast.machine, forecast.measured
    if measured:
        took = duration(sum(measured.values()))
        yield f"{len(measured)} finished jobs took as long as measured, {took} together"
    if machine.factors:
        factors = ", ".join(f"{rule} {factor:.2g}" for rule, factor in machine.factors.items() if rule)
        yield f"others take so many times what follows from the next line, as measured:\n  {factors}"
    device = "GPU" if machine.has_gpu else "CPU thread"
    yield (
        f"{machine.together} {device}(s) per training: {machine.peak_flops:.3g} FLOPs per second "
        f"(--flops-per-second), of which\n  {machine.utilization:.2g} are reached "
        f"(--utilization), in answers a third of that; {1000 * LAYER_SECONDS:.2g} ms or more per layer"
    )
    yield "answers are as long as right ones; a model that fails may write up to evaluation.max_new_tokens"
    yield from forecast.assumed


def _label(name: str) -> str:
    """Return the step and stage that make a node, or the name of a base."""
    return without_seed(name.rsplit("+", 1)[-1])


def _table(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    numbers: list[JustifyMethod] = ["right"] * (len(heads) - 1)
    return table(heads, rows, ["left", *numbers])
