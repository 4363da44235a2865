"""Commands as a person types them: `copra train CONFIG NODE` in place of the options that a rule passes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from copra.commands.experiment import workflow_of
from copra.experiment.command_lines import RULES
from copra.experiment.recipes import without_seed
from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError
from copra.utils.problems import hint


def options_of_job(command: str, words: Sequence[str]) -> list[str]:
    """Return the options that the workflow passes to a command for a job.

    `words` are config files, merged as `snakemake --configfile` merges them, and the job's name as in the
    path of its log: `llama@0+cot`, or without seeds if one job has that name. `latency` has only one job and
    takes no name.

    Raises:
        CopraError: no job has this name, or a file that it reads is missing.
    """
    rule = RULES[command]
    files: Sequence[str]
    given: Sequence[str]
    if "{}" not in rule.output:
        files, given = words, [""]
    else:
        files, given = words[: max(1, len(words) - 1)], words[1:][-1:]
    flow, source = workflow_of(list(map(Path, files))), ", ".join(files)
    names = list(rule.names(flow))
    if not names:
        raise CopraError(f"{source}: no job of this experiment runs copra {command}.")
    if not given:
        raise CopraError(f"{source}: name a job after it: copra {command} {files[0]} NAME{hint('', names)}.")
    name = _full_name(given[0], names, f"{source}: copra {command}")
    line = rule.line(flow, name)
    if missing := [file for file in line.reads if not Path(file).exists()]:
        makers = dict.fromkeys(_maker(flow, file, files) for file in missing)
        target = f"{flow.folder}/{rule.output.format(name)}"
        snakemake = f"snakemake --cores all --configfile {' '.join(files)} -- {target}"
        listed = "\n  ".join([*makers, f"{snakemake}    (with all that it needs)"])
        raise CopraError(f"{missing[0]}: no such file. Make what is missing:\n  {listed}")
    return line.options


def _full_name(given: str, names: Iterable[str], what: str) -> str:
    """Return the name of the job that is meant, in which seeds may be left out."""
    names = list(names)
    if given in names:
        return given
    alike = [name for name in names if without_seed(name) == given]
    if len(alike) > 1:
        raise CopraError(f"{what} has {given!r} once per seed. Name one: {', '.join(alike)}.")
    if not alike:
        raise CopraError(f"{what} has no job {given!r}{hint(given, names)}.")
    return alike[0]


def _maker(flow: Workflow, file: str, configs: Sequence[str]) -> str:
    """Return the command that makes a file of the workflow."""
    for command, rule in RULES.items():
        start, _, end = f"{flow.folder}/{rule.output}".partition("{}")
        name = file.removeprefix(start).removesuffix(end)
        if file == f"{start}{name}{end}" and name in rule.names(flow):
            return " ".join(["copra", command, *configs, *([name] if name else [])])
    return f"(no command makes {file})"
