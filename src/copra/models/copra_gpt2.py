"""A GPT-2 whose layers differ in their numbers of heads and in their FFN width.

This file is copied into every checkpoint of such a model, so it imports nothing but transformers and
what transformers itself needs: `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)`
works where copra is not installed.
"""

import copy

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt2.modeling_gpt2 import (
    GPT2MLP,
    GPT2Attention,
    GPT2Block,
    GPT2PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

LAYER_KEYS = ("n_head", "n_inner")


@strict
class CopraGPT2Config(GPT2Config):
    """A GPT-2 config with one dictionary of overrides a layer.

    A layer takes what its dictionary leaves out from the config itself. `head_dim` is the same in all
    layers and always written out, so the heads of a layer need not fill `n_embd`.
    """

    model_type = "copra_gpt2"

    head_dim: int | None = None
    layer_overrides: list[dict[str, int]] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.head_dim is None:
            self.head_dim = self.n_embd // self.n_head
        if self.n_inner is None:
            self.n_inner = 4 * self.n_embd
        if self.layer_overrides is None:
            self.layer_overrides = [{} for _ in range(self.n_layer)]

    def validate_architecture(self):
        """Every layer needs a head and a neuron; there is no cross-attention."""
        if self.add_cross_attention:
            raise ValueError(f"{self.model_type} has no cross-attention: leave add_cross_attention out")
        if len(self.layer_overrides) != self.n_layer:
            raise ValueError(
                f"layer_overrides has {len(self.layer_overrides)} entries for {self.n_layer} layers (n_layer)"
            )
        for index, override in enumerate(self.layer_overrides):
            unknown = set(override) - set(LAYER_KEYS)
            if unknown:
                raise ValueError(f"layer_overrides[{index}]: unknown keys {sorted(unknown)}")
            layer = self.layer_config(index)
            if layer.n_head < 1 or layer.n_inner < 1:
                raise ValueError(f"layer {index}: {layer.n_head} heads and {layer.n_inner} neurons")

    def layer_config(self, index: int) -> "CopraGPT2Config":
        """The config that layer `index` is built from: a copy with the layer's own sizes."""
        config = copy.copy(self)
        for key, value in self.layer_overrides[index].items():
            setattr(config, key, value)
        return config

    @property
    def per_layer_config(self) -> "list[CopraGPT2Config]":
        """What transformers asks for sizes where layers may differ, as for a static cache."""
        return [self.layer_config(index) for index in range(self.n_layer)]


class CopraGPT2Attention(GPT2Attention):
    """`GPT2Attention` whose heads need not fill the model's width."""

    def __init__(self, config: CopraGPT2Config, layer_idx: int):
        # Inside it is the attention of a GPT-2 that is as wide as the heads together; only its two
        # projections lead from and to the model's own width.
        inside = copy.copy(config)
        inside.n_embd = config.n_head * config.head_dim
        super().__init__(inside, layer_idx=layer_idx)
        self.embed_dim = config.n_embd
        self.c_attn = Conv1D(3 * inside.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, inside.n_embd)


class CopraGPT2Block(GPT2Block):
    """`GPT2Block` with a `CopraGPT2Attention`."""

    def __init__(self, config: CopraGPT2Config, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CopraGPT2Attention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config.n_inner, config)


class _InitialisedAsGPT2:
    """Lets GPT-2's rule for new output projections hold, which transformers skips in classes not its own."""

    @classmethod
    def is_custom_code(cls) -> bool:
        return False


class CopraGPT2Model(_InitialisedAsGPT2, GPT2Model):
    """`GPT2Model` with each layer built from its own config."""

    config: CopraGPT2Config
    _no_split_modules = ("CopraGPT2Block",)

    def __init__(self, config: CopraGPT2Config):
        GPT2PreTrainedModel.__init__(self, config)
        self.embed_dim = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([CopraGPT2Block(config.layer_config(i), i) for i in range(config.n_layer)])
        for block in self.h:
            # Once built, a layer asks its config only for the attention implementation, which all layers
            # share: with the model's own config it follows later changes.
            block.attn.config = config
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()


class CopraGPT2LMHeadModel(_InitialisedAsGPT2, GPT2LMHeadModel):
    """`GPT2LMHeadModel` over a `CopraGPT2Model`."""

    config: CopraGPT2Config

    def __init__(self, config: CopraGPT2Config):
        GPT2PreTrainedModel.__init__(self, config)
        self.transformer = CopraGPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


def register() -> None:
    """Make transformers' Auto classes know this model in this process; calling it again is harmless."""
    AutoConfig.register(CopraGPT2Config.model_type, CopraGPT2Config, exist_ok=True)
    AutoModelForCausalLM.register(CopraGPT2Config, CopraGPT2LMHeadModel, exist_ok=True)


# From here on `save_pretrained` copies this file into the checkpoint and names its classes in `auto_map`.
CopraGPT2Config.register_for_auto_class()
CopraGPT2LMHeadModel.register_for_auto_class("AutoModelForCausalLM")
