"""copra: how much accuracy does a pruned model that reasons in latent space keep per FLOP?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copra.evaluation.asking import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `copra.load` when it is first used: it imports torch."""
    if name == "load":
        from copra.evaluation.asking import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
