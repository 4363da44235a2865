"""Reasoning methods: one file each, listed here."""

from typing import Annotated, Union

from pydantic import Field

from copra.reasoning.coconut import Coconut
from copra.reasoning.codi import Codi
from copra.reasoning.cot import Cot
from copra.reasoning.icot_kd import IcotKd
from copra.reasoning.icot_si import IcotSi
from copra.reasoning.method import Method
from copra.reasoning.no_cot import NoCot
from copra.reasoning.pause import Pause
from copra.reasoning.scratchpad import Scratchpad

METHODS: dict[str, type[Method]] = {
    "no_cot": NoCot,
    "cot": Cot,
    "scratchpad": Scratchpad,
    "pause": Pause,
    "icot_si": IcotSi,
    "icot_kd": IcotKd,
    "coconut": Coconut,
    "codi": Codi,
}

AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="kind")]  # noqa: UP007

__all__ = ["METHODS", "AnyMethod", "Method"]
