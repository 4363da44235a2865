"""copra: how much accuracy does a pruned model that reasons in latent space keep per FLOP?"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `copra.load` when it is first used, since it imports torch: see `copra.evaluation.asking`."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # By name, so that the code of other commands does not depend on it (`copra.utils.fingerprint`).
    importlib.import_module("copra.utils.quiet").quiet_libraries()
    return importlib.import_module("copra.evaluation.asking").load
