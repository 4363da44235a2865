"""The report of a run as one HTML page that needs no other file and no network."""

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas
from docutils.core import publish_parts

from copra.report.comparisons import ALL
from copra.report.finding import finding
from copra.report.formats import for_people
from copra.report.summary import MainRow, main_rows
from copra.report.texts import CAPTIONS, PAGE
from copra.utils.files import canonical_json
from copra.utils.quantities import amount

MAIN = "accuracy_vs_flops"
"""The table and the figure at the head of the page."""
WITHOUT_FINDING = "Accuracy against FLOPs per answer"

Cell = tuple[float | str, str]
"""The value of a cell that its column is sorted by, and its text."""


def _cell(value: float, form: Callable[[float], str]) -> Cell:
    return ("", "-") if math.isnan(value) else (value, form(value))


COLUMNS: dict[str, tuple[bool, Callable[[int, MainRow], Cell]]] = {
    "left": (False, lambda place, row: (f"{place:04}", row.left)),
    "method": (False, lambda _, row: (row.name, row.name)),
    "accuracy (%)": (True, lambda _, row: (row.accuracy, row.interval)),
    "by seed (%)": (False, lambda _, row: (row.seeds, row.seeds)),
    "FLOPs ratio": (True, lambda _, row: _cell(row.flops_ratio, lambda ratio: f"{ratio:.3f}")),
    "FLOPs": (True, lambda _, row: _cell(row.flops, amount)),
    "parameters": (True, lambda _, row: _cell(row.parameters, amount)),
    "ms per answer": (True, lambda _, row: _cell(1000 * row.seconds, lambda ms: f"{ms:.1f}")),
}
"""The columns of the sortable table: True for numbers, and the cell of the row at a place."""


@dataclass(frozen=True)
class Picture:
    """A figure: its kind, the part of the experiment that it shows ("" for all of it), and its SVG file."""

    kind: str
    subject: str
    file: Path


@dataclass(frozen=True)
class Section:
    """A part of the page: all pictures of a kind, and the table of the same name as HTML ("" if none)."""

    title: str
    caption: str
    pictures: list[tuple[str, str]]
    """Subject and data URL of each."""
    table: str


def page(
    name: str,
    tables: Mapping[str, pandas.DataFrame],
    pictures: Sequence[Picture],
    titles: Mapping[str, str],
    *,
    config: str,
    commands: Sequence[str],
    versions: Iterable[str],
    record: Mapping[str, Any],
) -> str:
    """Return the page of an experiment as HTML.

    `tables` must have `accuracy_vs_flops`, whose finding is the heading. `titles` has the title of each kind
    of table and figure, `config` the text of the config, `commands` make the results again, `versions` are
    those of the packages that the models were made with, and `record` is the page's provenance.
    """
    main = tables[MAIN]
    whole = main[main["seed"] == ALL]
    kinds = dict.fromkeys([MAIN, *(picture.kind for picture in pictures), *tables])
    rows = main_rows(main)
    cells = {
        heading: [write(place, row) for place, row in enumerate(rows)]
        for heading, (_, write) in COLUMNS.items()
    }
    shown = [heading for heading in COLUMNS if any(text.strip("-") for _, text in cells[heading])]
    first, *others = [_section(kind, tables, pictures, titles) for kind in kinds]
    return _template().render(
        name=name,
        heading=finding(main) or WITHOUT_FINDING,
        questions=int(whole["n"].max()),
        seeds=max(1, main["seed"].nunique() - 1),
        first=first,
        columns=[(heading, COLUMNS[heading][0]) for heading in shown],
        rows=[(row, [cells[heading][place] for heading in shown]) for place, row in enumerate(rows)],
        relative=any(row.reference for row in rows),
        sections=others,
        config=config,
        commands=commands,
        versions=sorted(set(versions)),
        # A script ends at "</", wherever it stands.
        record=canonical_json(record).replace("</", "<\\/"),
    )


def _section(
    kind: str,
    tables: Mapping[str, pandas.DataFrame],
    pictures: Sequence[Picture],
    titles: Mapping[str, str],
) -> Section:
    own = [(picture.subject, _url(picture.file)) for picture in pictures if picture.kind == kind]
    title = titles[kind][:1].upper() + titles[kind][1:]
    return Section(title, caption_html(kind), own, _html(tables[kind]) if kind in tables else "")


def _html(table: pandas.DataFrame) -> str:
    """Return the columns for people of a table as HTML, with all text escaped."""
    return str(for_people(table).to_html(index=False, border=0, classes="all"))


def _url(file: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"


@cache
def caption_html(kind: str) -> str:
    """Return the caption of a kind of table and figure as HTML."""
    text = (CAPTIONS / f"{kind}.rst").read_text(encoding="utf-8")
    settings = {"raw_enabled": False, "file_insertion_enabled": False, "halt_level": 2}
    return str(publish_parts(text, writer="html5", settings_overrides=settings)["body"])


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.globals["zip"] = zip
    return environment.from_string(PAGE.read_text(encoding="utf-8"))
