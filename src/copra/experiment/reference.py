"""The configuration reference as Markdown, generated from the JSON schema of a config file."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

HEAD = """# Configuration

All keys of a config file. This page is generated: `copra schema --format markdown > docs/configuration.md`.
`copra schema` prints the same as a JSON schema, which `config/schema.json` holds for editors.
[Recipes](recipes.md) explains tasks, bases and products by example.
"""


def config_reference(schema: Mapping[str, Any]) -> str:
    """Return the page: a section per class of settings, with a table of its keys.

    `schema` is the JSON schema of a config file (`copra.experiment.config.json_schema`).
    """
    sections = [("The file", schema), *sorted(schema["$defs"].items())]
    return "\n".join([HEAD, *(line for title, part in sections for line in _section(title, part))])


def _section(title: str, part: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    if title != "The file" and "description" in part:
        yield f"{part['description']}\n"
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    required = part.get("required", ())
    for key, value in part.get("properties", {}).items():
        default = "required" if key in required else _default(value)
        yield f"| `{key}` | {_cell(_type(value))} | {default} | {_cell(value.get('description', ''))} |"
    yield ""


def _default(value: Mapping[str, Any]) -> str:
    """Return a default as inline code, or an empty cell if a class's own defaults or a function give it."""
    default = value.get("default", {})
    return "" if isinstance(default, Mapping) else _cell(f"`{json.dumps(default)}`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(value: Mapping[str, Any]) -> str:
    """Return the type of a value in words, with links to the sections of other classes."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(dict.fromkeys(map(_type, value[several])))
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}" if "items" in value else "list"
    if value.get("type") == "object":
        named = [*value.get("patternProperties", {}).values(), value.get("additionalProperties")]
        kinds = [_type(each) for each in named if isinstance(each, Mapping)]
        return f"mapping to {' or '.join(kinds)}" if kinds else "mapping"
    return f"{value.get('type', 'any')}{_bounds(value)}"


def _bounds(value: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    known = [f"{sign} {value[key]:,}" for key, sign in signs.items() if key in value]
    return f" {', '.join(known)}" if known else ""
