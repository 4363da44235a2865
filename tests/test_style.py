"""Plain English in what people read: docstrings, comments, messages, help texts and documents."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import copra

ROOT = Path(__file__).parents[1]
PACKAGE = Path(copra.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = [
    *SOURCES,
    *(path for path in sorted((ROOT / "workflow").rglob("*")) if path.is_file()),
    *sorted((ROOT / "docs").glob("*.md")),
    *(
        ROOT / name
        for name in ("Snakefile", "README.md", "CONTRIBUTING.md", "config.yaml", "results/README.md")
    ),
]
RIDDLE = re.compile(r"(Whether|What|How|Which|So many|In which)\b")
RATE = re.compile(
    r"\b(FLOPs|[Ss]econds|[Bb]ytes|[Tt]okens|[Rr]ows|[Ss]teps|[Ll]atents|passes) an? "
    r"(answer|generated token|token|question|weight|optimizer step|pass|second|stage)\b"
)
BRITISH = re.compile(
    r"\b\w*(colour|behaviour|(normal|quant|token|optim|initial|internal|recogn|organ|summar)is(e|ed|es|ing|ation)\b)"
)


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield all docstrings of a module with their lines, those under constants and fields among them."""
    for node in ast.walk(ast.parse(file.read_text())):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else []:
            match child:
                case ast.Expr(ast.Constant(str(text))):
                    yield child.lineno, text


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """The lines of all texts in which a pattern occurs."""
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in TEXTS
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def test_docstrings_begin_with_what_is_returned_done_or_held():
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for file in SOURCES
        for line, text in docstrings(file)
        if RIDDLE.match(text)
    ]
    assert found == []


def test_rates_are_per_and_not_a():
    assert lines_with(RATE) == []


def test_spelling_is_american():
    assert lines_with(BRITISH) == []
