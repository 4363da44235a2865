"""Messages for problems of a config: pydantic's errors with the key paths and terms of a YAML file."""

import difflib
import re
import reprlib
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]

LONGEST = 80
"""Maximum number of characters of a value in a message."""
LONGEST_PATH = 200
"""Maximum number of characters of a path in a message; the end is kept, as it identifies the file."""
LONGEST_HINT = 200
"""Maximum number of characters of the names in a hint."""

# Replacements for pydantic's sentences, in the terms of a config file, by type of problem.
_SENTENCES = {
    "string_pattern_mismatch": "is no name; take letters, digits, '_', '-' and '.', a letter or digit first",
    "string_type": "should be text; put it in quotes if it is meant so",
    "list_type": "should be a list",
    "model_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
}


def explain(problem: Mapping[str, Any], config: Any, schema: Schema) -> list[str]:
    """Return the message for one of pydantic's errors about `config`, as lines that begin with a key path.

    `schema` is the JSON schema of the config, the source of the legal keys and kinds.
    """
    location, kind = problem["loc"], problem["type"]
    path = [*_path(location, config), *(location[-1:] if kind == "missing" else ())]
    where = dotted(path)
    if kind == "extra_forbidden":
        return [f"{where}: unknown key{hint(str(location[-1]), _keys(_nodes(location[:-1], schema)))}"]
    if kind == "missing":
        return [f"{where}: this key is missing"]
    if kind == "union_tag_not_found":
        return [f"{where}.kind: this key is missing (known: {', '.join(_kinds(_nodes(location, schema)))})"]
    if kind == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        return [f"{where}.kind: {shown(tag)} is unknown{hint(tag, _kinds(_nodes(location, schema)))}"]
    message = _SENTENCES.get(kind, problem["msg"].removeprefix("Value error, "))
    message = re.sub("^(Input|String|List|Dictionary) should", "should", message)
    message = message.replace(" after validation", "")
    unshown = not where or location[-1] == "[key]" or isinstance(problem["input"], dict | list)
    got = "" if unshown else f" (got {shown(problem['input'])})"
    return [f"{line}{got}" for line in located(where, message)]


def located(where: str, message: str) -> list[str]:
    """Return the lines of a message, each with the path `where` of its key in front.

    The message of a check of several keys begins with the name of the wrong key, which is appended to the
    path.
    """
    joints = ["." if re.match(r"[a-z_]+(\.\S+)?: ", line) else ": " for line in message.split("\n")]
    return [
        f"{where}{joint if where else ''}{line}"
        for joint, line in zip(joints, message.split("\n"), strict=True)
    ]


def dotted(path: Iterable[Any]) -> str:
    """Return the path of a key for messages, such as steps.cot.training."""
    return ".".join(map(_key, path))


def shown(value: Any) -> str:
    """Return the repr of a value, shortened to `LONGEST` characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = LONGEST
    short.maxlevel = 3
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits.
        return f"a number of {value.bit_length()} bits"
    return cut(text)


def shown_path(path: str | Path) -> str:
    """Return a path on one line, with its start cut off beyond `LONGEST_PATH` characters."""
    text = str(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= LONGEST_PATH else f"...{text[3 - LONGEST_PATH :]}"


def cut(text: str) -> str:
    """Return a text with its end cut off beyond `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def hint(word: str, known: Iterable[str]) -> str:
    """Return a hint in brackets for an unknown `word`: the nearest known one, or all known ones."""
    known = sorted(known)
    if close := difflib.get_close_matches(str(word)[:LONGEST], known, n=1):
        return f" (did you mean {close[0]!r}?)"
    listed = textwrap.shorten(", ".join(known), LONGEST_HINT, placeholder=" ...")
    return f" (known: {listed})" if known else ""


def _path(location: tuple[Any, ...], config: Any) -> list[Any]:
    """Return the keys of the file on the way to a problem's location.

    Pydantic's locations also contain the tags of union members, which are not keys of the file.
    """
    path, value = [], config
    for part in location:
        if _has(value, part):
            value = value[part]
            path.append(part)
    return path


def _key(part: Any) -> str:
    text = part if isinstance(part, str) else shown(part)
    is_plain = len(text) <= LONGEST and re.fullmatch(r"[\w-]+(\.[\w-]+)*", text)
    return text if is_plain else shown(part)


def _has(value: Any, part: Any) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _keys(nodes: Iterable[Schema]) -> list[str]:
    """Return the keys that are legal in any of these parts of the schema."""
    return [key for node in nodes for key in node.get("properties", {})]


def _kinds(nodes: Iterable[Schema]) -> list[str]:
    """Return the `kind`s of the members of a union."""
    kinds = (node.get("properties", {}).get("kind", {}).get("const") for node in nodes)
    return sorted({kind for kind in kinds if kind})


def _nodes(location: tuple[Any, ...], schema: Schema) -> list[Schema]:
    """Return the parts of the schema that apply at a problem's location."""
    here = _resolved([schema], schema)
    for part in location:
        following: list[Schema] = []
        for node in here:
            following += [value for key, value in node.get("properties", {}).items() if key == part]
            following += node.get("patternProperties", {}).values()
            following += [
                v for v in (node.get("additionalProperties"), node.get("items")) if isinstance(v, dict)
            ]
        chosen = [node for node in here if part in _kinds([node]) or node.get("title", "").lower() == part]
        here = chosen or _resolved(following, schema) or here
    return here


def _resolved(nodes: list[Schema], schema: Schema) -> list[Schema]:
    found: list[Schema] = []
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if "$ref" in node:
            waiting.append(schema["$defs"][node["$ref"].rsplit("/", 1)[1]])
        for union in ("anyOf", "oneOf", "allOf"):
            waiting.extend(node.get(union, []))
        found.append(node)
    return found
