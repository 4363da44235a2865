"""copra page: write the report of a run, one HTML page with all its tables and figures."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import yaml

from copra.commands.common import Coded, add_settings, made_by, settings_of
from copra.models.manifest import Manifest
from copra.report.page import Picture, page
from copra.utils.errors import CopraError
from copra.utils.files import read_parquet, replacing


class PageSettings(Coded):
    name: str
    """Name of the experiment."""
    tables: list[str]
    """The tables that it shows."""
    figures: list[str]
    """The figures that it shows, each with its subject, as in `latent_lens/llama@0+coconut`."""
    titles: dict[str, str]
    """The title of each kind of table and figure."""
    config: dict[str, Any]
    """The config of the experiment."""
    sources: list[str]
    """The names of its config files."""
    texts: str
    """Digest of the page's own texts, whose changes make it again."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    for name, words in (("tables", "Parquet tables"), ("figures", "SVG figures")):
        parser.add_argument(
            f"--{name}", type=Path, nargs="*", default=[], help=f"the {words}, in the order of the settings"
        )
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="manifests of the last models")
    parser.add_argument("--output", type=Path, required=True, help="HTML page to write")


def run(options: Namespace) -> None:
    settings = settings_of(options, PageSettings)
    for name in ("tables", "figures"):
        given, named = len(getattr(options, name)), len(getattr(settings, name))
        if given != named:
            raise CopraError(f"--{name}: {given} files, but the settings name {named}.")
    versions = [Manifest.read(file.parent).versions for file in options.models]
    record = made_by(options, *options.tables, *options.figures, *options.models)
    text = page(
        settings.name,
        {name: read_parquet(file) for name, file in zip(settings.tables, options.tables, strict=True)},
        [
            Picture(*name.partition("/")[::2], file)
            for name, file in zip(settings.figures, options.figures, strict=True)
        ],
        settings.titles,
        config=yaml.safe_dump(settings.config, sort_keys=False, allow_unicode=True, width=100),
        commands=_commands(settings.sources),
        versions=[f"{package} {version}" for each in versions for package, version in each.items()],
        record=record,
    )
    with replacing(options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _commands(sources: list[str]) -> list[str]:
    """Return the commands that make the results, and that look further."""
    files = " ".join(sources)
    return [
        f"snakemake --configfile {files} --cores 2  # all of this",
        f"copra best {files}  # the most accurate recipes, under a budget with --flops, --latency or --bytes",
        "copra compare RECIPE RECIPE  # two recipes: their difference, and where they disagree",
        "copra ask RECIPE  # a prompt to ask a model questions",
    ]
