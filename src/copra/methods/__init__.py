"""The registry of reasoning methods, one file per method."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from copra.methods.coconut import Coconut
from copra.methods.codi import Codi
from copra.methods.cot import Cot
from copra.methods.icot_kd import IcotKd
from copra.methods.icot_si import IcotSi
from copra.methods.looped import Looped
from copra.methods.method import Method
from copra.methods.no_cot import NoCot
from copra.methods.pause import Pause
from copra.methods.scratchpad import Scratchpad

METHODS: dict[str, type[Method]] = {
    "no_cot": NoCot,
    "cot": Cot,
    "scratchpad": Scratchpad,
    "pause": Pause,
    "looped": Looped,
    "icot_si": IcotSi,
    "icot_kd": IcotKd,
    "coconut": Coconut,
    "codi": Codi,
}

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="kind")]  # noqa: UP007

__all__ = ["METHODS", "AnyMethod", "Method"]
