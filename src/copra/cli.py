"""The command line: one command per rule, so that every line of the workflow can be pasted into a shell."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from copra import __version__
from copra.utils import processes
from copra.utils.ending import end_with_snakemake
from copra.utils.errors import CopraError
from copra.utils.forking import end_process, quiet_libraries, run_in_fork
from copra.utils.out_of_memory import explained, is_out_of_memory
from copra.utils.problems import hint

VERBS = {
    # What people call.
    "check": "check config files, without running anything",
    "plan": "estimate jobs, FLOPs, hours and disk of a run",
    "status": "show the progress of a run",
    "clean": "list or remove results that no recipe leads to",
    "schema": "print the JSON schema of a config file",
    # What the workflow calls, one command per rule.
    "data": "prepare a task's splits",
    "base": "fetch or make a base model",
    "score": "score layers, heads, key/value groups and neurons",
    "curve": "measure a model with fewer and fewer units, without fine-tuning",
    "choose": "choose the units that a pruning removes",
    "prune": "apply a plan to a checkpoint",
    "train": "run one training stage",
    "prompt": "give a checkpoint a few-shot prompt",
    "quantize": "store a checkpoint's weights as int8",
    "evaluate": "answer the questions of a split",
    "sweep": "evaluate with other numbers of latents",
    "lens": "decode latents through the LM head",
    "latency": "measure seconds per answer",
    "table": "make a table from evaluations, curves or scores",
    "export": "write a table as CSV, Markdown and LaTeX",
    "figure": "draw a figure",
}


# What a user can mend, wherever it happens.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, or 1 after a message for the user on stderr.

    Without arguments it does what this process was started for, in a fork where there is a server for that;
    otherwise the process ends here.
    """
    if arguments is not None:
        return _run(arguments)
    own = sys.argv[1:]
    status = run_in_fork(own[0]) if own else None
    return end_process(_run(own)) if status is None else status


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in VERBS:
        return _help(arguments)
    verb = arguments[0]
    module = importlib.import_module(f"copra.commands.{verb}")
    parser = argparse.ArgumentParser(prog=f"copra {verb}", description=module.__doc__)
    module.arguments(parser)
    options = parser.parse_args(arguments[1:])
    quiet_libraries()
    try:
        if processes.world_size() == 1:  # of several, their launcher ends with it and ends them
            end_with_snakemake()
        if getattr(options, "processes", 1) > 1 and processes.world_size() == 1:
            return processes.launch(options.processes, arguments, options.jobs_per_gpu)
        processes.end_with_launcher()
        module.run(options)
        processes.shutdown()
    except CopraError as error:
        print(f"copra {verb}: {error}", file=sys.stderr)
        return error.status
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"copra {verb}: {explained(verb, options, error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in DISK:
            raise
        # Where bytes are on their way to the disk the system no longer says of which file.
        place = error.filename or getattr(options, "state", None) or "a file"
        print(
            f"copra {verb}: {place}: could not be read or written ({error.strerror}). Free some space "
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
        print(f"copra: unknown command {arguments[0]!r}{hint(arguments[0], VERBS)}\n", file=stream)
    print("usage: copra COMMAND [options]      copra COMMAND --help\n", file=stream)
    for verb, text in VERBS.items():
        print(f"  {verb:10} {text}", file=stream)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
