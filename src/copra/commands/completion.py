"""copra completion: print a script that completes commands, options, configs and names of jobs with Tab."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import shtab

from copra.commands.common import folder
from copra.commands.registry import COMMANDS, load

CONFIGS = shtab.glob("*.yaml", "*.yml")
NAMES = {
    "bash": "_copra_names",
    "zsh": "_copra_names",
    "fish": "(copra jobs (commandline -opc)[3] --of (commandline -opc)[2] 2>/dev/null)",
}
"""Shell code that lists the names of jobs, for the command and the config on the line."""
PREAMBLES = {
    "bash": """\
# Names of jobs contain @, at which bash would split them.
COMP_WORDBREAKS=${COMP_WORDBREAKS//@}
_copra_names() {
  compgen -W "$(copra jobs "${COMP_WORDS[2]}" --of "${COMP_WORDS[1]}" 2>/dev/null)" -- "$1"
}
""",
    "zsh": """\
_copra_names() {
  local typed=("${(@Q)${(z)BUFFER}}")
  compadd -- ${(f)"$(copra jobs "$typed[3]" --of "$typed[2]" 2>/dev/null)"}
}
""",
}


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="shell that runs the script")


def run(options: Namespace) -> None:
    print(shtab.complete(_parser(), options.shell, preamble=PREAMBLES.get(options.shell, "")))


def _parser() -> ArgumentParser:
    """Return a parser of the whole command line, which knows how its values are completed."""
    root = ArgumentParser(prog="copra")
    commands = root.add_subparsers()
    for name, command in COMMANDS.items():
        parser, _ = load(name)
        if command.job is not None:
            parser.add_argument("configs", nargs="?")
        if command.job:
            job: Any = parser.add_argument("job", nargs="?")
            job.complete = NAMES
        action: Any
        for action in parser._actions:
            if action.dest == "configs":
                action.complete = CONFIGS
            elif action.type in (Path, folder):
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[parser], add_help=False, help=command.help)
    return root
