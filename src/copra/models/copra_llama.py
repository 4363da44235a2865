"""A Llama whose layers differ in their numbers of heads and in their FFN width.

This file is copied into every checkpoint of such a model, so it imports nothing but transformers and
what transformers itself needs: `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)`
works where copra is not installed.
"""

import copy

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

LAYER_KEYS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


@strict
class CopraLlamaConfig(LlamaConfig):
    """A Llama config with one dictionary of overrides a layer.

    A layer takes what its dictionary leaves out from the config itself. `head_dim` is the same in all
    layers and always written out, so head counts need not divide `hidden_size`.
    """

    model_type = "copra_llama"

    layer_overrides: list[dict[str, int]] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.layer_overrides is None:
            self.layer_overrides = [{} for _ in range(self.num_hidden_layers)]

    def validate_architecture(self):
        """Head counts have to be multiples of the key/value head counts, layer by layer."""
        if len(self.layer_overrides) != self.num_hidden_layers:
            raise ValueError(
                f"layer_overrides has {len(self.layer_overrides)} entries for "
                f"{self.num_hidden_layers} layers (num_hidden_layers)"
            )
        for index, override in enumerate(self.layer_overrides):
            unknown = set(override) - set(LAYER_KEYS)
            if unknown:
                raise ValueError(f"layer_overrides[{index}]: unknown keys {sorted(unknown)}")
            layer = self.layer_config(index)
            heads, groups = layer.num_attention_heads, layer.num_key_value_heads
            if groups < 1 or heads % groups:
                raise ValueError(f"layer {index}: {heads} heads are no multiple of {groups} key/value heads")

    def layer_config(self, index: int) -> "CopraLlamaConfig":
        """The config that layer `index` is built from: a copy with the layer's own sizes."""
        config = copy.copy(self)
        for key, value in self.layer_overrides[index].items():
            setattr(config, key, value)
        return config

    @property
    def per_layer_config(self) -> "list[CopraLlamaConfig]":
        """What transformers asks for sizes where layers may differ, as for a static cache."""
        return [self.layer_config(index) for index in range(self.num_hidden_layers)]


class CopraLlamaModel(LlamaModel):
    """`LlamaModel` with each layer built from its own config."""

    config: CopraLlamaConfig

    def __init__(self, config: CopraLlamaConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [LlamaDecoderLayer(config.layer_config(i), i) for i in range(config.num_hidden_layers)]
        )
        for layer in self.layers:
            # Once built, a layer asks its config only for settings that all layers share, the attention
            # implementation above all: with the model's own config it follows later changes.
            layer.self_attn.config = layer.mlp.config = config
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class CopraLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` over a `CopraLlamaModel`."""

    config: CopraLlamaConfig

    def __init__(self, config: CopraLlamaConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = CopraLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def register() -> None:
    """Make transformers' Auto classes know this model in this process; calling it again is harmless."""
    AutoConfig.register(CopraLlamaConfig.model_type, CopraLlamaConfig, exist_ok=True)
    AutoModelForCausalLM.register(CopraLlamaConfig, CopraLlamaForCausalLM, exist_ok=True)


# From here on `save_pretrained` copies this file into the checkpoint and names its classes in `auto_map`.
CopraLlamaConfig.register_for_auto_class()
CopraLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
