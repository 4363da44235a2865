"""Problems of a config in words: pydantic's errors with the paths and the terms of a YAML file."""

import difflib
import re
import reprlib
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]

LONGEST = 80
"""Characters of a value in a message."""
LONGEST_PATH = 200
"""Characters of a path in a message: the end of one is what a person looks for."""
LONGEST_HINT = 200
"""Characters of the names that a hint lists."""

# Pydantic's sentences in the words of a config file, by the type of problem.
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
    """What a person reads of one of pydantic's errors about `config`: a line or more, key path first.

    `schema` is the JSON schema of the config: it knows which keys and kinds are legal where.
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
    """The lines of a message, each with the path `where` of the key that it is about.

    A check of several keys together names the one that it means at the start of its sentence.
    """
    joints = ["." if re.match(r"[a-z_]+(\.\S+)?: ", line) else ": " for line in message.split("\n")]
    return [
        f"{where}{joint if where else ''}{line}"
        for joint, line in zip(joints, message.split("\n"), strict=True)
    ]


def dotted(path: Iterable[Any]) -> str:
    """The path of a key as messages write it, such as steps.cot.training."""
    return ".".join(map(_key, path))


def shown(value: Any) -> str:
    """A value as Python writes it, in `LONGEST` characters at most, however large or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = LONGEST
    short.maxlevel = 3
    try:
        text = short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits.
        return f"a number of {value.bit_length()} bits"
    return cut(text)


def shown_path(path: str | Path) -> str:
    """A path as it is, on one line and in `LONGEST_PATH` characters at most, its start left out where it was
    longer."""
    text = str(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= LONGEST_PATH else f"...{text[3 - LONGEST_PATH :]}"


def cut(text: str) -> str:
    """A text that is not longer than `LONGEST` characters, its end left out where it was."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def hint(word: str, known: Iterable[str]) -> str:
    """Words in brackets that help after an unknown `word`: the nearest known one, or the known ones."""
    known = sorted(known)
    if close := difflib.get_close_matches(str(word)[:LONGEST], known, n=1):
        return f" (did you mean {close[0]!r}?)"
    listed = textwrap.shorten(", ".join(known), LONGEST_HINT, placeholder=" ...")
    return f" (known: {listed})" if known else ""


def _path(location: tuple[Any, ...], config: Any) -> list[Any]:
    """The keys of the file on the way to a problem's location.

    Pydantic's locations also name the chosen members of unions, which are no keys of the file.
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
    """The keys that are legal in any of these parts of the schema."""
    return [key for node in nodes for key in node.get("properties", {})]


def _kinds(nodes: Iterable[Schema]) -> list[str]:
    """The `kind`s of the members of a union."""
    kinds = (node.get("properties", {}).get("kind", {}).get("const") for node in nodes)
    return sorted({kind for kind in kinds if kind})


def _nodes(location: tuple[Any, ...], schema: Schema) -> list[Schema]:
    """The parts of the schema that apply at a problem's location."""
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
