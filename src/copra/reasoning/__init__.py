"""Reasoning methods: one file each, listed here."""

from typing import Annotated

from pydantic import Field

from copra.reasoning.coconut import Coconut
from copra.reasoning.cot import Cot
from copra.reasoning.method import Method
from copra.reasoning.no_cot import NoCot

METHODS: dict[str, type[Method]] = {"no_cot": NoCot, "cot": Cot, "coconut": Coconut}

AnyMethod = Annotated[NoCot | Cot | Coconut, Field(discriminator="kind")]

__all__ = ["METHODS", "AnyMethod", "Method"]
