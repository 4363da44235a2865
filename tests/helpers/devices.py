"""Which operations would make the host wait for a GPU, found on a CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What they return, or the size of it, is known only once the device has computed it.
WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.masked_select")


class _Listening(TorchDispatchMode):
    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.overloadpacket)
        by_mask = name == "aten.index" and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """Gathers the names of such operations within this context, those of backward passes too."""
    found: list[str] = []
    with _Listening(found):
        yield found
