"""copra schema: print the JSON schema of a config file, or a page that describes all keys."""

import json
from argparse import ArgumentParser, Namespace

from copra.experiment.config import json_schema
from copra.experiment.reference import config_reference


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("json", "markdown"),
        default="json",
        help="json for editors, markdown for people (default: json)",
    )


def run(options: Namespace) -> None:
    schema = json_schema()
    print(json.dumps(schema, indent=1) if options.format == "json" else config_reference(schema))
