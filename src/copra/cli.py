"""The command line: one command per rule, so that every line of the workflow can be pasted into a shell."""

import argparse
import errno
import gc
import sys
from collections.abc import Sequence
from itertools import takewhile

from copra import __version__
from copra.commands.registry import COMMANDS, load
from copra.commands.resources import take_gpu
from copra.utils import processes
from copra.utils.ending import end_with_snakemake
from copra.utils.errors import CopraError
from copra.utils.forking import end_process, run_in_fork
from copra.utils.out_of_memory import explained, is_out_of_memory
from copra.utils.problems import hint
from copra.utils.quiet import quiet_libraries

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
        words = _without_names(command, arguments[1:])
        if COMMANDS[command].computes:
            # Rows and samples are many objects that stay. To look for garbage among them as often as ever
            # takes half as long as making them.
            gc.set_threshold(100_000)
            take_gpu(words)
        parser, run = load(command)
        options = parser.parse_args(words)
        if getattr(options, "processes", 1) > 1 and processes.world_size() == 1:
            return processes.launch(options.processes, [command, *words], options.jobs_per_gpu)
        run(options)
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


def _without_names(command: str, words: Sequence[str]) -> Sequence[str]:
    """Return a command line with the options of a job in place of a config and the name of the job."""
    names = list(takewhile(lambda word: not word.startswith("-"), words))
    if not names or COMMANDS[command].job is None:
        return words
    from copra.commands.typed import options_of_job

    return [*options_of_job(command, names), *words[len(names) :]]


def _help(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"copra {__version__}")
        return 0
    asked = not arguments or arguments[0] in ("-h", "--help", "help")
    width = max(map(len, COMMANDS))
    lines = [] if asked else [f"copra: unknown command {arguments[0]!r}{hint(arguments[0], COMMANDS)}", ""]
    lines += ["usage: copra COMMAND [options]      copra COMMAND --help", ""]
    lines += [f"  {name:{width}} {command.help}" for name, command in COMMANDS.items()]
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
