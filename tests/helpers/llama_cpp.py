"""GGUF files run by llama.cpp."""

from pathlib import Path

import pytest

from copra.generation.llama_cpp import GgufModel


def gguf_model(file: Path) -> GgufModel:
    """The model in a GGUF file; skipped without the library."""
    pytest.importorskip("llama_cpp", reason="needs the package llama-cpp-python")
    return GgufModel(file, context=256, threads=1)
