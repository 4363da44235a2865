"""All commands by name, without their modules, which may import torch."""

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """An entry of the command line."""

    help: str
    job: str | None = None
    """Form of the names of its jobs: "" if it has only one, None if no rule of the workflow calls it."""
    computes: bool = False
    """True if it computes with torch, for which it takes a GPU."""


COMMANDS = {
    # For people.
    "init": Command("write a commented config for a file of rows and a model"),
    "check": Command("check config files, without running anything"),
    "plan": Command("estimate jobs, FLOPs, hours and disk of a run"),
    "run": Command("run an experiment with Snakemake, one line per finished job"),
    "status": Command("show the progress of a run"),
    "ask": Command("ask a model a question, or several at a prompt", computes=True),
    "compare": Command("compare the answers of two models, or of all seeds of two recipes"),
    "best": Command("list the most accurate recipes under a budget"),
    "publish": Command("write a checkpoint with a model card into a folder, or push it to the Hub"),
    "gguf": Command("write a checkpoint as a GGUF file, for llama.cpp"),
    "executorch": Command("write a checkpoint as a program of ExecuTorch, for phones"),
    "clean": Command("list or remove results that no recipe leads to"),
    "jobs": Command("list the jobs that the commands below can run"),
    "schema": Command("print the JSON schema of a config file"),
    "completion": Command("print a script for tab completion in a shell"),
    # For the workflow, one command per rule; people name a job instead of its settings.
    "data": Command("prepare a task's splits", "TASK/SPLIT"),
    "base": Command("fetch or make a base model", "NODE", computes=True),
    "score": Command(
        "score layers, heads, key/value groups and neurons", "NODE/OBJECTIVE/SCORING", computes=True
    ),
    "curve": Command(
        "measure a model with fewer and fewer units, without fine-tuning", "CURVE/NODE", computes=True
    ),
    "select": Command("choose the units that a pruning removes", "NODE"),
    "prune": Command("apply a plan to a checkpoint", "NODE", computes=True),
    "train": Command("run one training stage", "NODE", computes=True),
    "prompt": Command("give a checkpoint a few-shot prompt", "NODE"),
    "quantize": Command("store a checkpoint's weights as int8", "NODE", computes=True),
    "evaluate": Command("answer the questions of a split", "[TASK/]NODE", computes=True),
    "sweep-latents": Command("evaluate with other numbers of latents", "NODE", computes=True),
    "swap-latents": Command("evaluate with the latents of other questions", "NODE", computes=True),
    "logit-lens": Command("decode latents through the LM head", "NODE", computes=True),
    "latency": Command("measure seconds per answer", "", computes=True),
    "convert": Command("convert a checkpoint to other programs' formats, and test each", "NODE"),
    "table": Command("make a table from evaluations, curves or scores", "TABLE"),
    "export": Command("write a table as CSV, Markdown and LaTeX", "TABLE"),
    "figure": Command("draw a figure", "FIGURE[/SUBJECT]"),
    "page": Command("write the report, one HTML page", ""),
}


def load(command: str) -> tuple[ArgumentParser, Callable[[Namespace], None]]:
    """Import a command; return its parser and its function."""
    module = importlib.import_module(f"copra.commands.{command.replace('-', '_')}")
    job = COMMANDS[command].job
    prog, usage, epilog = f"copra {command}", None, None
    if job is not None:
        named = f"{prog} CONFIG {job}".strip()
        usage = f"{named} [options]\n       {prog} --settings JSON [options]"
        epilog = f"`{named}` passes the options that the workflow passes for this job; those after it win."
    parser = ArgumentParser(prog=prog, usage=usage, description=module.__doc__, epilog=epilog)
    module.arguments(parser)
    return parser, module.run
