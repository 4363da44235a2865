"""The command line: one command per rule, so that every line of the workflow can be pasted into a shell."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from copra import __version__
from copra.commands.resources import take_gpu
from copra.utils import processes
from copra.utils.ending import end_with_snakemake
from copra.utils.errors import CopraError
from copra.utils.forking import end_process, quiet_libraries, run_in_fork
from copra.utils.out_of_memory import explained, is_out_of_memory
from copra.utils.problems import hint


@dataclass(frozen=True)
class Command:
    """A command: its help text; `computes` if it computes with torch, for which it takes a GPU."""

    help: str
    computes: bool = False


COMMANDS = {
    # For people.
    "check": Command("check config files, without running anything"),
    "plan": Command("estimate jobs, FLOPs, hours and disk of a run"),
    "status": Command("show the progress of a run"),
    "clean": Command("list or remove results that no recipe leads to"),
    "schema": Command("print the JSON schema of a config file"),
    # For the workflow, one command per rule.
    "data": Command("prepare a task's splits"),
    "base": Command("fetch or make a base model", computes=True),
    "score": Command("score layers, heads, key/value groups and neurons", computes=True),
    "curve": Command("measure a model with fewer and fewer units, without fine-tuning", computes=True),
    "choose": Command("choose the units that a pruning removes"),
    "prune": Command("apply a plan to a checkpoint", computes=True),
    "train": Command("run one training stage", computes=True),
    "prompt": Command("give a checkpoint a few-shot prompt"),
    "quantize": Command("store a checkpoint's weights as int8", computes=True),
    "evaluate": Command("answer the questions of a split", computes=True),
    "sweep": Command("evaluate with other numbers of latents", computes=True),
    "lens": Command("decode latents through the LM head", computes=True),
    "latency": Command("measure seconds per answer", computes=True),
    "table": Command("make a table from evaluations, curves or scores"),
    "export": Command("write a table as CSV, Markdown and LaTeX"),
    "figure": Command("draw a figure"),
}
# Errors of the disk that a user can mend.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 1 after a message for the user on stderr.

    Without arguments it runs the command line of this process, as a fork of a server if there is one, and
    ends the process.
    """
    if arguments is not None:
        return _run(arguments)
    own = sys.argv[1:]
    status = run_in_fork(own[0] in COMMANDS and COMMANDS[own[0]].computes) if own else None
    return end_process(_run(own)) if status is None else status


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        return _help(arguments)
    command, options = arguments[0], argparse.Namespace()
    quiet_libraries()
    try:
        if processes.world_size() == 1:  # of several, their launcher ends with it and ends them
            end_with_snakemake()
        processes.end_with_launcher()
        if COMMANDS[command].computes:
            take_gpu(arguments[1:])
        module = importlib.import_module(f"copra.commands.{command}")
        parser = argparse.ArgumentParser(prog=f"copra {command}", description=module.__doc__)
        module.arguments(parser)
        options = parser.parse_args(arguments[1:])
        if getattr(options, "processes", 1) > 1 and processes.world_size() == 1:
            return processes.launch(options.processes, arguments, options.jobs_per_gpu)
        module.run(options)
        processes.shutdown()
    except CopraError as error:
        print(f"copra {command}: {error}", file=sys.stderr)
        return error.status
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"copra {command}: {explained(command, options, error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in DISK:
            raise
        # Where bytes are on their way to the disk the system no longer says of which file.
        place = error.filename or getattr(options, "state", None) or "a file"
        print(
            f"copra {command}: {place}: could not be read or written ({error.strerror}). Free some space "
            "or check the permissions, then run again: what was finished before is kept.",
            file=sys.stderr,
        )
        return 1
    return 0


def _help(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"copra {__version__}")
        return 0
    asked = not arguments or arguments[0] in ("-h", "--help", "help")
    stream = sys.stdout if asked else sys.stderr
    if not asked:
        print(f"copra: unknown command {arguments[0]!r}{hint(arguments[0], COMMANDS)}\n", file=stream)
    print("usage: copra COMMAND [options]      copra COMMAND --help\n", file=stream)
    for name, command in COMMANDS.items():
        print(f"  {name:10} {command.help}", file=stream)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
