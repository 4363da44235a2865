"""Settings of conversions: recipes whose models are also measured in the formats of other programs."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

from pydantic import Field, field_validator

from copra.schema.settings import Settings

ConversionFormat = Literal[
    "gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "executorch-f32", "executorch-int8"
]
"""A program and the type of weights in its files."""
FAMILIES = {"gguf": {"llama": "Llamas"}, "executorch": {"llama": "Llamas", "gpt2": "GPT-2"}}
"""The model types that each program's files have a form for, with their names for people."""
PACKAGES = {
    "gguf": {"gguf": "gguf", "llama_cpp": "llama-cpp-python"},
    "executorch": {"executorch": "'executorch>=1.5.1,<1.6'"},
}
"""The packages by which files of each program are written and run: what is imported, what is installed."""


def program_and_type(format: ConversionFormat) -> tuple[str, str]:
    """Return the program of a format, and the type of its weights."""
    program, _, kind = format.partition("-")
    return program, kind


def missing_packages(formats: Iterable[ConversionFormat]) -> list[str]:
    """Return what must be installed to write and run files of these formats, as pip takes it."""
    programs = dict.fromkeys(program_and_type(format)[0] for format in formats)
    wanted = {module: name for program in programs for module, name in PACKAGES[program].items()}
    return [name for module, name in wanted.items() if find_spec(module) is None]


class Conversions(Settings):
    """Settings of conversions: models in the formats of other programs, each asked some questions."""

    recipes: list[str] = Field(min_length=1)
    """Recipes whose last models are converted, for one seed, such as `llama+cot+coconut`."""
    formats: list[ConversionFormat] = Field(min_length=1)
    """Formats: the program (llama.cpp's GGUF or ExecuTorch) and the type of the weights. Their packages must
    be installed: gguf and llama-cpp-python, or executorch, for int8 torchao too."""
    questions: int = Field(100, ge=1)
    """Number of questions that a model answers in each format, one at a time, from the start of the split
    that `evaluation.split` names."""

    @field_validator("recipes", "formats")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{sorted(twice)[0]!r} stands there twice")
        return names
