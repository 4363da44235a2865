"""Reasoning methods: one file per method, and copra's own by their kinds."""

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
"""copra's own methods; `copra.methods.registry` has those of plugins too."""

__all__ = ["METHODS", "Method"]
