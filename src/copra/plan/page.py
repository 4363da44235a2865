"""A forecast as text."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from copra.experiment.recipes import training_notes, without_seed
from copra.experiment.workflow import Workflow
from copra.plan import machine as machines
from copra.plan.forecast import Forecast, Line
from copra.plan.jobs import MODELS, PRODUCTS
from copra.report.formats import SCALES
from copra.utils.terminal import table

ANSWERS = ("evaluate", "sweep", "lens")
"""Verbs whose FLOPs are those of answering questions."""
UNKNOWN = "?"


def page(forecast: Forecast, workflow: Workflow, source: str) -> str:
    """Return the whole page: counts, one line per step, one line per verb, sums, and assumptions."""
    lines = list(forecast.lines.values())
    to_run = [line for line in lines if not line.made]
    kinds = [line.job.verb for line in lines if line.job.verb in MODELS]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in MODELS if kind in kinds)
    notes = training_notes(workflow.experiment, workflow.tree)
    parts = [
        f"{source}: {len(workflow.tree.recipes)} recipes, {len(kinds)} models ({counted})\n"
        f"{len(lines)} jobs: {len(lines) - len(to_run)} cached, {len(to_run)} to run",
        _steps(forecast, workflow),
        _verbs(forecast),
        "\n".join(_sums(forecast, workflow.folder, lines, to_run)),
        *([_listed("Prunings far from their budgets", forecast.warnings)] if forecast.warnings else []),
        *([_listed("Trainings of few steps", forecast.short)] if forecast.short else []),
        *([_listed("Notes", notes)] if notes else []),
        _listed("Assumed", _assumed(forecast)),
        "Cached is what records its present settings. Snakemake has the last word, and also sees changes of "
        "code and\nof input files: snakemake -n -q rules host",
    ]
    return "\n\n".join(parts)


def _listed(heading: str, lines: Iterable[str]) -> str:
    return "\n".join([f"{heading}:", *(f"- {line}" for line in lines)])


def amount(number: float, unit: str = "") -> str:
    """Return a number with its unit and an SI prefix, as in 15.9 TFLOPs."""
    scale, prefix = next((pair for pair in SCALES if number >= pair[0]), (1.0, ""))
    scaled = number / scale
    text = f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"
    return f"{text} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Return a time in its largest fitting unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{seconds:.0f} s"


def _steps(forecast: Forecast, workflow: Workflow) -> str:
    """Return a table with one row per step and stage, over all models that it makes, cached or not."""
    groups: dict[str, list[Line]] = {}
    for line in forecast.lines.values():
        if line.job.verb in (*MODELS, *ANSWERS):
            groups.setdefault(_label(line.job.name), []).append(line)
    rows = []
    for label, lines in groups.items():
        models = [line for line in lines if line.job.verb in MODELS]
        answering = sum(line.flops for line in lines if line.job.verb in ANSWERS)
        row = [
            amount(sum(line.learning for line in lines)),
            amount(answering),
            duration(sum(line.seconds or 0.0 for line in lines)),
            amount(sum(line.bytes for line in models), "B"),
        ]
        known = all(line.seconds is not None for line in lines)
        cached = sum(line.made for line in models)
        lengths = sorted({line.steps for line in models if line.steps is not None})
        steps = " to ".join(dict.fromkeys(f"{number:,}" for number in (*lengths[:1], *lengths[-1:])))
        rows.append([label, len(models), cached, steps, *(row if known else [UNKNOWN] * len(row))])
    costs = ["training FLOPs", "evaluation FLOPs", "time", "disk"]
    return _table(rows, ["the whole run", "models", "cached", "steps", *costs])


def _verbs(forecast: Forecast) -> str:
    """Return a table with one row per verb; FLOPs and time are those of the jobs to run."""
    rows = []
    for verb in PRODUCTS:
        lines = [line for line in forecast.lines.values() if line.job.verb == verb]
        left = [line for line in lines if not line.made]
        if lines:
            row = [
                amount(sum(line.flops for line in left)),
                duration(sum(line.seconds or 0.0 for line in left)),
            ]
            known = all(line.seconds is not None for line in left)
            numbers = [len(lines), len(lines) - len(left), len(left)]
            rows.append([verb, *numbers, *(row if known else [UNKNOWN] * len(row))])
    return _table(rows, ["what is left", "jobs", "cached", "to run", "FLOPs", "time"])


def _sums(forecast: Forecast, folder: str, lines: Sequence[Line], to_run: Sequence[Line]) -> Iterator[str]:
    """Yield the totals or, if sizes of bases are unknown, the commands that make them known."""
    if forecast.unknown:
        yield from _unknown(forecast.unknown, folder)
        return
    hours = "GPU-hours" if forecast.clock.machine.on_gpu else "CPU-hours"
    learning = sum(line.learning for line in to_run)
    answering = sum(line.flops for line in to_run if line.job.verb in ANSWERS)
    rest = sum(line.flops for line in to_run) - learning - answering
    if not to_run:
        yield "Nothing is to run."
    else:
        yield (
            f"To run: {amount(learning, 'FLOPs')} of training, {amount(answering, 'FLOPs')} of evaluation, "
            f"{amount(rest, 'FLOPs')} of the rest\n(validation, scoring, curves, latency): "
            f"{forecast.device_seconds(to_run) / 3600:.2g} {hours}, "
            f"{duration(sum(line.seconds for line in to_run))} one job after another."
        )
        seconds, chain = forecast.longest_chain(lambda line: not line.made)
        yield f"Longest chain: {duration(seconds)}, however many jobs run side by side:"
        yield "  " + " > ".join(_short(job.verb, job.name) for job in chain)
    if done := [line for line in lines if line.made]:
        flops = amount(sum(line.flops for line in done), "FLOPs")
        yield f"Cached: {flops}, {forecast.device_seconds(done) / 3600:.2g} {hours}."
    state = max((line.state for line in to_run), default=0.0)
    disk = f"Disk: {amount(sum(line.bytes for line in lines), 'B')} of checkpoints in all"
    yield disk + (f", and up to {amount(state, 'B')} for each training under way." if state else ".")


def _unknown(bases: Mapping[str, str], folder: str) -> Iterator[str]:
    yield "No FLOPs, hours and disk: the sizes of a base are not known before it is fetched or made."
    for node, path in bases.items():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            yield f"  {node}: its sizes alone come with `hf download {path} config.json`"
        yield f"  {node}: `snakemake {folder}/models/{node}/copra.json` makes it"


def _assumed(forecast: Forecast) -> Iterator[str]:
    clock = forecast.clock
    machine = clock.machine
    if clock.measured:
        took = duration(sum(clock.measured.values()))
        yield f"{len(clock.measured)} finished jobs took as long as measured, {took} together"
    if clock.factors:
        factors = ", ".join(f"{verb} {clock.factors[verb]:.2g}" for verb in PRODUCTS if verb in clock.factors)
        yield f"others take so many times what follows from the next two lines, as measured:\n  {factors}"
    device = "GPU" if machine.on_gpu else "CPU thread"
    peak = f"{machine.flops_per_second:.3g} FLOPs per second (--flops-per-second)"
    reached = f"{machine.utilization:.2g} are reached (--utilization), in answers a third of that"
    yield f"{machine.together} {device}(s) a training: {peak}, of which\n  {reached}"
    layer = 1000 * machines.SECONDS_A_LAYER[machine.kind]
    starts = f"{machines.START_OF_OTHERS:.2g} to {machines.START['train']:.2g} s"
    speed = amount(machines.BYTES_A_SECOND, "B")
    yield f"a layer's pass takes {layer:.1g} ms or more; jobs start in {starts}; weights move at {speed}/s"
    yield "answers are as long as right ones; a model that fails may write up to evaluation.max_new_tokens"
    yield from forecast.assumed


def _label(name: str) -> str:
    """Return the step and stage that make a node, or the name of a base."""
    return without_seed(name.rsplit("+", 1)[-1])


def _short(verb: str, name: str) -> str:
    """Return the label of a job in a chain: the step of a model, the verb of other jobs."""
    return _label(name) if verb in MODELS else verb


def _table(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    return table(heads, rows, ["left", *["right"] * (len(heads) - 1)])
