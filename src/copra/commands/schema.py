"""copra schema: print the JSON schema of a config file, for editors."""

import json
from argparse import ArgumentParser, Namespace

from copra.experiment.config import json_schema


def arguments(parser: ArgumentParser) -> None:
    pass


def run(options: Namespace) -> None:
    print(json.dumps(json_schema(), indent=1))
