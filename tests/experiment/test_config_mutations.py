"""Mutants of configs are accepted, or refused in short lines: never a traceback, a hang or a full memory.

Some hundreds of them, each drawn from a seed that a failure names.
"""

import contextlib
import cProfile
import datetime
import io
import json
import pstats
import random
import resource
import signal
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest

from copra.commands import check
from copra.commands.experiment import merged
from copra.experiment.config import parse
from copra.experiment.outputs import TABLES, figure_files, figure_settings, table_files, table_settings
from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError
from copra.utils.files import read_yaml

ROOT = Path(__file__).parents[2]
SOURCE = "mutant.yaml"
NUMBER = 600
"""Mutants of all configs together."""
FORECAST_EVERY = 3
"""Of so many mutants one has its trainings and prunings forecast too, which takes most of the time."""
LONGEST_LINE = 400
MOST_CALLS = 20_000_000
"""Function calls that one mutant may cost; the costliest shipped config costs 14 million."""
MOST_SECONDS = 300
"""A guard against hangs alone; what a mutant may cost is counted in calls."""
MOST_MEMORY = 2**30
"""Bytes that a mutant may take."""

TRAINING = {"steps": 9, "batch_size": 4, "micro_batch_size": 2}
LORA = {"epochs": 1, "lora": {"rank": 4}, "warmup_ratio": 0.1, "select_best_by": "accuracy"}
PRUNE = {"kind": "prune", "unit": "neurons", "metric": "taylor", "multiple_of": 8}
SMALL = {
    "name": "small",
    "task": "sums",
    "tasks": {
        "sums": {"kind": "word_sums", "limit": {"train": 50}},
        "longer": {"kind": "word_sums", "train": 1, "valid": 1, "test": 20, "max_number": 20},
        "long": {"kind": "addition", "train": 100, "valid": 20, "test": 20, "blanks": 3},
        "products": {"kind": "multiplication", "train": 100, "valid": 20, "test": 20},
        "graphs": {"kind": "prosqa", "train": 100, "valid": 20, "test": 20},
        "told": {
            "kind": "gsm8k",
            "source": "files",
            "train": "${ROWS}",
            "test": "${ROWS}",
            "validation_rows": 10,
        },
        "hub": {"kind": "gsm8k", "source": "hub", "hub_name": "openai/gsm8k"},
        "lines": {
            "kind": "rows",
            "train": "${ROWS}",
            "validation_share": 0.2,
            "test_share": 0.2,
            "columns": {"question": ["question"], "steps": "answer"},
            "answer_after": "####",
        },
        "set": {"kind": "rows", "hub_name": "nobody/set", "hub_revision": "main", "test": "test"},
    },
    "base": "llama",
    "bases": {
        "llama": {
            "from_scratch": {
                "hidden_size": 32,
                "layers": 3,
                "heads": 4,
                "kv_heads": 2,
                "intermediate_size": 48,
            }
        },
        "gpt2": {
            "from_scratch": {
                "architecture": "gpt2",
                "hidden_size": 32,
                "layers": 2,
                "heads": 4,
                "intermediate_size": 48,
                "tokenizer": "bpe",
            }
        },
        "hub": {"path": "nobody/nothing", "revision": "main"},
    },
    "steps": {
        "cot": {"kind": "cot", "training": TRAINING},
        "no-cot": {"kind": "no_cot", "training": LORA},
        "on-long": {"kind": "scratchpad", "task": "long", "training": TRAINING},
        "on-products": {"kind": "icot_si", "task": "products", "training": TRAINING},
        "on-graphs": {"kind": "cot", "task": "graphs", "training": LORA},
        "on-told": {"kind": "cot", "task": "told", "training": LORA},
        "on-hub": {"kind": "cot", "task": "hub", "training": LORA},
        "on-lines": {"kind": "cot", "task": "lines", "training": LORA},
        "pause": {"kind": "pause", "training": TRAINING},
        "kd": {"kind": "icot_kd", "teacher": "llama+cot", "training": TRAINING},
        "coconut": {
            "kind": "coconut",
            "max_latent_stage": 2,
            "auxiliary_decoder": {"decoder": "small"},
            "training": TRAINING,
            "overrides": {
                1: {"steps": 12},
                2: {"epochs": 2, "stop_early": {"target_loss": 0.1, "patience": 2}},
            },
        },
        "codi": {"kind": "codi", "latents": 3, "latent_input": "projected", "training": TRAINING},
        "heal": {"kind": "cot", "distil": {"teacher": "llama+cot", "task_weight": 0.5}, "training": TRAINING},
        "prompt": {"kind": "few_shot", "num_fewshot": 2, "examples": "train"},
        "layers": {"kind": "prune", "unit": "layers", "metric": "angular", "budget": {"count": 1}},
        "heads": {"kind": "prune", "unit": "heads", "metric": "gates", "budget": {"fraction": 0.5}},
        "both": {**PRUNE, "unit": ["kv_groups", "neurons"], "protect": [0], "budget": {"flops": 0.8}},
        "neurons": {**PRUNE, "scope": "global", "objective": "text", "budget": {"parameters": 0.8}},
        "int8": {"kind": "quantize", "weights": "int8"},
    },
    "recipes": [
        ["cot", "coconut"],
        ["cot", "layers", "heal"],
        ["cot", "both", "codi"],
        {"steps": ["cot", "neurons", "int8"]},
        {"base": "gpt2", "steps": ["cot", "kd"]},
        {"base": "hub", "steps": ["prompt"]},
        {"start": ["cot"], "prunings": [[], "heads", ["layers"]], "methods": ["no-cot", ["pause"]]},
        *([f"on-{task}"] for task in ("long", "products", "graphs", "told", "hub", "lines")),
    ],
    "reference": "llama+cot+coconut",
    "primary": "llama+cot+layers+heal",
    "contrasts": {
        "healed": {"plus": ["llama+cot+layers+heal"], "minus": ["llama+cot+coconut"]},
        "twice": {
            "plus": ["llama+cot+coconut", "llama+cot+layers+pause"],
            "minus": ["llama+cot+pause", "llama+cot+layers+heal"],
        },
    },
    "seeds": [0, 1],
    "importance": {"text": {"file": "${ROWS}"}, "greedy_protect": [0]},
    "curves": {
        "drop": {
            "model": "llama+cot",
            "unit": "layers",
            "metrics": ["angular", "random"],
            "remove": [1],
            "objectives": ["cot", "answer"],
        },
    },
    "evaluation": {
        "limit": 5,
        "stages": True,
        "starts": True,
        "latents": [0, 2],
        "lens": 2,
        "tasks": ["longer", "set"],
    },
    "compute": {"processes": 2, "save_every_steps": 5},
    "tracking": "tensorboard",
}

NUMBERS = [0, 1, -1, 2, 7, 0.5, 1.5, -0.0, 1e-320, 1e300, -1e300, 100, 4096, 10**6, 10**9]
NUMBERS += [sign * (2**bits + more) for bits in (31, 32, 53, 64) for sign in (1, -1) for more in (-1, 0, 1)]
NUMBERS += [float("nan"), float("inf"), -float("inf"), 10**30, 10**4999, -(10**4999)]
TEXTS = [
    "",
    " ",
    "+",
    "@",
    ".",
    "..",
    "/",
    "~",
    "~no.such.user",
    "$",
    "${HOME}",
    "${NOT_SET}",
    "a/b",
    "a\nb: c",
]
TEXTS += ["\0", "\ud800", "\x1b[0m", "é", "e\u0301", "日本語", "😀", "\u202e", "a" * 60, "a" * 300]
TEXTS += ["a" * 10**5, "a+" * 1000, "a/" * 3000, "1", "1e300", "1" * 5000, "nan", "null", "true", "1.0"]
TEXTS += ["{}", "{question}", "{0}", "{a.b}", "%s", "-rf", "x.gguf", "/dev/null", "nobody/nothing", "cot.1"]
DATES = [datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3)]
CONTAINERS = [[], {}, [[]], [None], [{}], {"a": 1}, {"kind": "cot"}, {1: 2}, {None: 1}, {True: {}}, {"a"}]
VALUES = [True, False, None, *NUMBERS, *TEXTS, *DATES, *CONTAINERS, b"a", list(range(1000))]
KEYS = [True, None, 0, -1, 1.5, 10**30, DATES[0], "", "kind", "a.b", "a.1", "é", "a\nb", "\x1b", "a" * 300]


@cache
def configs() -> dict[str, Any]:
    """All configs that are mutated, by name: the shipped ones, and one in which every key is written out."""
    shipped = [ROOT / "config.yaml", *sorted((ROOT / "config").glob("*.yaml"))]
    found = {path.stem: read_yaml(path) for path in shipped}
    for path in sorted((ROOT / "config" / "gsm8k").glob("*.yaml")):
        # What is laid over any preset, and over the one of its name.
        base = "gpt2" if path.stem == "other-test-sets" else path.stem
        found[f"gsm8k/{path.stem}"] = merged(found[base], read_yaml(path))
    return found | {"maximal": parse(SMALL, "small").canonical()}


def mutant(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy of a config in which one to three things differ."""
    changed = deepcopy(config)
    for _ in range(rng.choice([1, 1, 2, 3])):
        rng.choice(MUTATIONS)(changed, rng)
    return changed


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value within a value, as the mapping or list that it is in and its key or index there."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def replaced(config: Any, rng: random.Random) -> None:
    """Put something else in the place of a value."""
    holder, key = rng.choice(list(places(config)))
    holder[key] = deepcopy(rng.choice(VALUES))


def nudged(config: Any, rng: random.Random) -> None:
    """Put a number in the place of a number, or its text."""
    found = [(h, k) for h, k in places(config) if isinstance(h[k], int | float)]
    if found:
        holder, key = rng.choice(found)
        holder[key] = rng.choice([str(holder[key]), float(holder[key]), 2 * holder[key], *NUMBERS])


def moved(config: Any, rng: random.Random) -> None:
    """Put a value in the place of another one: a reference, a number or all below a key."""
    found = list(places(config))
    (holder, key), (other, where) = rng.choice(found), rng.choice(found)
    holder[key] = deepcopy(other[where])


def swapped(config: Any, rng: random.Random) -> None:
    """Put a text in the place of another one: mostly names."""
    found = [(h, k) for h, k in places(config) if isinstance(h[k], str)]
    if found:
        (holder, key), (other, where) = rng.choice(found), rng.choice(found)
        holder[key], other[where] = other[where], holder[key]


def removed(config: Any, rng: random.Random) -> None:
    """Leave a key or an item out."""
    holder, key = rng.choice(list(places(config)))
    del holder[key]


def renamed(config: Any, rng: random.Random) -> None:
    """Misspell a key, or make something else of it."""
    found = [(h, k) for h, k in places(config) if isinstance(h, dict)]
    holder, key = rng.choice(found)
    word = str(key)
    cut = rng.randrange(len(word) + 1)
    new = rng.choice([word[:cut] + word[cut + 1 :], word[:cut] + "x" + word[cut:], rng.choice(KEYS)])
    holder[new] = holder.pop(key)


def added(config: Any, rng: random.Random) -> None:
    """Add a key that another mapping has, or none."""
    found = [(h, k) for h, k in places(config) if isinstance(h, dict)]
    (holder, _), (other, key) = rng.choice(found), rng.choice(found)
    holder[rng.choice([key, rng.choice(KEYS)])] = deepcopy(rng.choice([other[key], rng.choice(VALUES)]))


def relisted(config: Any, rng: random.Random) -> None:
    """Empty, reverse, shorten, repeat or nest a list."""
    found = [(h, k) for h, k in places(config) if isinstance(h[k], list)]
    if found:
        holder, key = rng.choice(found)
        items = holder[key]
        changed = [[], items[::-1], items[1:], items + items[:1], items * 20, [items], items[:1]]
        holder[key] = deepcopy(rng.choice(changed))


MUTATIONS: list[Callable[[Any, random.Random], None]] = [
    replaced,
    nudged,
    nudged,
    moved,
    swapped,
    removed,
    renamed,
    added,
    relisted,
]


def altered(config: Any, settings: Any) -> list[tuple[Any, Any]]:
    """The numbers and booleans of a config that are something else in its settings, each with what it is."""
    if isinstance(config, dict) and isinstance(settings, dict):
        settings = {str(key): value for key, value in settings.items()}
        pairs = [(value, settings[str(key)]) for key, value in config.items() if str(key) in settings]
    elif isinstance(config, list) and isinstance(settings, list):
        pairs = list(zip(config, settings, strict=True))
    else:
        kinds = bool if isinstance(config, bool) else int | float
        same = isinstance(settings, kinds) and config == settings
        return [] if same or settings is None or not isinstance(config, int | float) else [(config, settings)]
    return [found for pair in pairs for found in altered(*pair)]


def ask(config: Any, forecast: bool = True) -> None:
    """Ask all that `copra check` and a dry run ask about a config, with or without what the former forecasts.

    Raises:
        CopraError: the config is not an experiment's.
    """
    copra = Workflow(config, SOURCE)
    assert altered(config, copra.experiment.canonical()) == []
    for seed in copra.experiment.seeds:
        numpy.random.RandomState(seed)
    for kind in (copra.trained, copra.pruned, copra.prompted, copra.quantized):
        assert kind
    _ = table_files(copra), figure_files(copra), copra.artifacts(), copra.measured
    for name, node in copra.tree.nodes.items():
        _ = copra.data(name, "train"), copra.teacher(name), copra.pretrained(name)
        _ = copra.evaluate_settings(name), copra.sweep_latents_settings(name)
        _ = copra.swap_latents_settings(name), copra.logit_lens_settings(name)
        if node.kind == "train":
            copra.train_settings(name)
        if node.kind == "prune":
            _ = copra.select_settings(name), copra.prune_settings(name)
        if node.kind == "quantize":
            copra.quantize_settings(name)
    for path in copra.scored:
        node, objective, file = copra.within("scores", path).rsplit("/", 2)
        if objective != "text":  # whose file is read
            copra.score_settings(node, objective, file.removesuffix(".json"))
    for measured in copra.measured:
        copra.curve_settings(*measured.split("/", 1))
    for name in TABLES:
        table_settings(copra, name)
    for name in copra.on_other_tasks:
        _ = copra.evaluate_settings(name), copra.trained_on(name)
    for name in ("training_curves", "curriculum"):
        figure_settings(copra, name)
    if copra.experiment.latency:
        copra.latency_settings()
    if forecast:
        with contextlib.redirect_stdout(io.StringIO()):
            check.run(Namespace(configs=[Path(SOURCE)], merged=json.dumps(config), results=None))


def problem_of(config: Any, forecast: bool = True) -> str | None:
    """Says what is wrong with what a config brings; None if it is accepted, or refused as it should be."""
    profile = cProfile.Profile()
    try:
        with bounded():
            profile.runcall(ask, config, forecast)
    except CopraError as error:
        for line in str(error).split("\n"):
            if not line.startswith(f"{SOURCE}: ") or len(line) >= LONGEST_LINE or not line.isprintable():
                return f"a line of {len(line)} characters: {line[:LONGEST_LINE]!r}"
    except Exception as error:
        return "".join(traceback.format_exception(error, limit=-3))[-2000:]
    calls = pstats.Stats(profile).total_calls
    return f"{calls:,} calls" if calls > MOST_CALLS else None


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bounds on the memory that this process may take in addition, and on the time.

    Memory is bounded where /proc tells how much the process has.
    """

    def hung(*_: Any) -> None:
        raise TimeoutError(f"a config took more than {MOST_SECONDS} seconds")

    handler = signal.signal(signal.SIGALRM, hung)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if (statm := Path("/proc/self/statm")).exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY, hard))
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The files that configs name, in a folder of their own."""
    lines = "".join(
        json.dumps({"question": f"What is {n} + {n}?", "answer": f"<<{n}+{n}={2 * n}>>\n#### {2 * n}"}) + "\n"
        for n in range(50)
    )
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(lines)
    monkeypatch.setenv("COPRA_DATA", str(tmp_path))
    monkeypatch.setenv("ROWS", str(tmp_path / "gsm8k" / "train.jsonl"))
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(configs()))
def test_mutants_are_accepted_or_refused_in_short_lines(name, rows):
    problems = {}
    for index in range(NUMBER // len(configs())):
        seed = f"0 {name} {index}"
        changed = mutant(configs()[name], random.Random(seed))
        if problem := problem_of(changed, forecast=index % FORECAST_EVERY == 0):
            problems[seed] = problem
    assert not problems, "\n".join(f"{seed}: {problem}" for seed, problem in problems.items())


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_a_value_in_the_place_of_a_whole_config_is_refused_in_short_lines(number):
    assert problem_of(VALUES[number]) is None


@pytest.mark.slow
def test_the_config_in_which_every_key_is_written_out_is_accepted(rows):
    ask(configs()["maximal"])
