"""Settings of libraries that must precede their import."""

import logging
import os


def quiet_libraries() -> None:
    """Apply settings that must precede the import of libraries."""
    # The tokenizers library warns in a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers imports an installed torchao, which warns about missing GPU kernels.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
