"""Settings of a base model and of weight quantization."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from copra.schema.settings import MOST_CHANNELS, MOST_HEADS, MOST_LAYERS, FilePath, Settings

QUANTIZATION_ROWS, QUANTIZATION_BATCH = 64, 8
"""Number of validation rows, and of rows per batch, on which a quantized model is compared with the plain
one."""


class FromScratch(Settings):
    """A small model with random weights, and a tokenizer trained on the task's train split."""

    architecture: Literal["llama", "gpt2"] = "llama"
    """Model architecture."""
    hidden_size: int = Field(ge=8, le=MOST_CHANNELS)
    """Width of the residual stream."""
    layers: int = Field(ge=1, le=MOST_LAYERS)
    """Number of decoder layers."""
    heads: int = Field(ge=1, le=MOST_HEADS)
    """Number of query heads per layer."""
    kv_heads: int | None = Field(None, ge=1, le=MOST_HEADS)
    """Number of key/value heads per layer (llama only; null: as many as query heads)."""
    intermediate_size: int = Field(ge=8, le=MOST_CHANNELS)
    """Width of the feed-forward network."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the random weights."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary embedding (llama only)."""
    max_position_embeddings: int = Field(512, ge=16)
    """Maximum sequence length in tokens."""
    tie_word_embeddings: bool = True
    """If true, the LM head shares the weights of the embedding."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability (gpt2 only; llama has no dropout)."""
    tokenizer: Literal["words", "bpe"] = "words"
    """Kind of tokenizer. words: words and whole numbers as tokens, closed vocabulary; bpe: byte-level BPE
    with single digits."""
    vocabulary: int = Field(4096, ge=64, le=MOST_CHANNELS)
    """Maximum vocabulary size of the tokenizer."""

    @model_validator(mode="after")
    def _divisible(self) -> "FromScratch":
        if self.hidden_size % self.heads:
            raise ValueError(f"'hidden_size' {self.hidden_size} is not a multiple of 'heads' {self.heads}")
        if self.architecture == "llama" and (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"'hidden_size' {self.hidden_size} over 'heads' {self.heads} is "
                f"{self.hidden_size // self.heads} channels per head, and rotary embeddings turn pairs of "
                "them. Take numbers that give an even one"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"'heads' {self.heads} is not a multiple of 'kv_heads' {self.kv_heads}")
        if self.architecture == "gpt2" and self.kv_heads not in (None, self.heads):
            raise ValueError("'kv_heads': GPT-2 has as many key/value heads as query heads")
        return self


class Base(Settings):
    """A starting model: exactly one of `path` and `from_scratch`."""

    path: FilePath | None = None
    """Hub id, or path of a local folder or GGUF file; environment variables such as ${MODELS} are expanded.
    The weights of a GGUF file are dequantized, which needs the package gguf."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model. A commit pins the model."""
    from_scratch: FromScratch | None = None
    """Sizes and tokenizer of a small model with random weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights, in memory and in checkpoints. Training in pure bfloat16 loses small updates."""
    trust_remote_code: bool = False
    """If true, Python code that comes with a Hub model is executed. Only for models that you trust."""

    @model_validator(mode="after")
    def _one_source(self) -> "Base":
        if (self.path is None) == (self.from_scratch is None):
            raise ValueError("give exactly one of 'path' and 'from_scratch'")
        return self

    @property
    def local(self) -> Path | None:
        """`path` as a local path, which need not exist; None for a model from scratch."""
        return None if self.path is None else Path(os.path.expandvars(self.path)).expanduser()

    @property
    def folder(self) -> Path | None:
        """The local folder behind `path`, or None for a Hub id or a file."""
        return self.local if self.local is not None and self.local.is_dir() else None

    @property
    def gguf(self) -> Path | None:
        """The local GGUF file behind `path`, or None for any other base."""
        is_gguf = self.local is not None and self.local.suffix == ".gguf" and self.local.is_file()
        return self.local if is_gguf else None


class Quantize(Settings):
    """A step that stores the weights in fewer bits. It must be the last step of a recipe.

    The matrices of the decoder layers are quantized; the embedding and the LM head are not. GPT-2 models
    cannot be quantized.
    """

    kind: Literal["quantize"]
    """Kind of step."""
    weights: Literal["int8"]
    """Format of the weights. int8: symmetric 8-bit integers, one scale per output channel; activations are
    not quantized. Needs torchao."""
