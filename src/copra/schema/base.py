"""The settings of a base model, and of the number of bits in its weights."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from copra.schema.settings import MOST_CHANNELS, MOST_HEADS, MOST_LAYERS, FilePath, Settings


class FromScratch(Settings):
    """A small model with random weights, and a tokenizer trained on the task's train split."""

    architecture: Literal["llama", "gpt2"] = "llama"
    """Which model class."""
    hidden_size: int = Field(ge=8, le=MOST_CHANNELS)
    """Width of the residual stream."""
    layers: int = Field(ge=1, le=MOST_LAYERS)
    """Decoder layers."""
    heads: int = Field(ge=1, le=MOST_HEADS)
    """Query heads."""
    kv_heads: int | None = Field(None, ge=1, le=MOST_HEADS)
    """Key/value heads (llama only; null: as many as query heads)."""
    intermediate_size: int = Field(ge=8, le=MOST_CHANNELS)
    """Width of the feed-forward network."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the random weights."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary embedding (llama only)."""
    max_position_embeddings: int = Field(512, ge=16)
    """Longest sequence in tokens."""
    tie_word_embeddings: bool = True
    """Whether the LM head shares the weights of the embedding."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of GPT-2 (llama has none)."""
    tokenizer: Literal["words", "bpe"] = "words"
    """Words and whole numbers as tokens (closed vocabulary), or byte-level BPE with single digits."""
    vocabulary: int = Field(4096, ge=64, le=MOST_CHANNELS)
    """Largest vocabulary of the tokenizer."""

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
    """A Hub id, or a local folder or GGUF file (environment variables such as ${MODELS} are filled in). The
    weights of a GGUF file are dequantized; that needs the package gguf."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; give a commit to pin it."""
    from_scratch: FromScratch | None = None
    """A model made here."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights, in memory and in checkpoints. Training in pure bfloat16 loses small updates."""
    trust_remote_code: bool = False
    """Run code that comes with a Hub model. Only for models that you trust."""

    @model_validator(mode="after")
    def _one_source(self) -> "Base":
        if (self.path is None) == (self.from_scratch is None):
            raise ValueError("give exactly one of 'path' and 'from_scratch'")
        return self

    @property
    def local(self) -> Path | None:
        """`path` as a local path, which need not exist, or None for a model made here."""
        return None if self.path is None else Path(os.path.expandvars(self.path)).expanduser()

    @property
    def folder(self) -> Path | None:
        """The local folder behind `path`, or None for a Hub id or a file."""
        return self.local if self.local is not None and self.local.is_dir() else None

    @property
    def gguf(self) -> Path | None:
        """The local GGUF file behind `path`, or None for all else."""
        is_gguf = self.local is not None and self.local.suffix == ".gguf" and self.local.is_file()
        return self.local if is_gguf else None


class Quantize(Settings):
    """Keep the weights in fewer bits. The last step of a recipe: only evaluation follows it.

    The matrices of the decoder layers are quantized, not the embedding and the LM head. GPT-2 cannot be.
    """

    kind: Literal["quantize"]
    """Which kind of step this is."""
    weights: Literal["int8"]
    """int8: whole numbers of 8 bits, symmetric, one scale an output channel; activations stay as they are.
    Needs torchao."""
