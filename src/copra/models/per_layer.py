"""Model classes with a per-layer number of heads and FFN width, for each family.

This file is copied into every checkpoint of such a model, with those that it imports. They import only torch,
transformers and dependencies of transformers, so that `AutoModelForCausalLM.from_pretrained(path,
trust_remote_code=True)` works where copra is not installed. The classes of a family, such as
CopraLlamaConfig, CopraLlamaModel and CopraLlamaForCausalLM, are created from its plain classes at the end.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.smollm3.modeling_smollm3 import SmolLM3DecoderLayer
from transformers.pytorch_utils import Conv1D

from .thinking import Thinking

SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class PerLayerConfig:
    """Adds one dictionary of sizes per layer to a config, `layer_overrides`.

    Sizes missing in a layer's dictionary come from the config itself. `head_dim` is the same in all layers
    and always explicit, so head counts need not divide the model's width.
    """

    layer_keys = SIZES

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_overrides is None:
            self.layer_overrides = [{} for _ in range(self.num_hidden_layers)]

    def validate_architecture(self):
        """Check that every layer has a head and a neuron, and equally many query heads per key/value head."""
        if getattr(self, "add_cross_attention", False):
            raise ValueError(f"{self.model_type} has no cross-attention: leave add_cross_attention out")
        if len(self.layer_overrides) != self.num_hidden_layers:
            name = self.attribute_map.get("num_hidden_layers", "num_hidden_layers")
            raise ValueError(
                f"layer_overrides has {len(self.layer_overrides)} entries for {self.num_hidden_layers} "
                f"layers ({name})"
            )
        for index, override in enumerate(self.layer_overrides):
            if unknown := set(override) - set(self.layer_keys):
                raise ValueError(f"layer_overrides[{index}]: unknown keys {sorted(unknown)}")
            layer = self.layer_config(index)
            heads, neurons = layer.num_attention_heads, getattr(layer, self.layer_keys[-1])
            groups = getattr(layer, "num_key_value_heads", heads)
            if heads < 1 or neurons < 1:
                raise ValueError(f"layer {index}: {heads} heads and {neurons} neurons")
            if groups < 1 or heads % groups:
                raise ValueError(f"layer {index}: {heads} heads are no multiple of {groups} key/value heads")

    def layer_config(self, index: int) -> "PerLayerConfig":
        """Return a copy of the config with the sizes of layer `index`."""
        config = copy.copy(self)
        for key, value in self.layer_overrides[index].items():
            setattr(config, key, value)
        return config

    @property
    def per_layer_config(self) -> "list[PerLayerConfig]":
        """The config of each layer, which transformers reads for models whose layers differ."""
        return [self.layer_config(index) for index in range(self.num_hidden_layers)]


class LayerView:
    """A view of a model's config for one layer, in which some settings have other values.

    All other settings are read from the config itself, including later changes such as another attention
    implementation.
    """

    def __init__(self, config: "PreTrainedConfig | LayerView", changes: dict[str, Any]):
        aliases = {alias: changes[name] for alias, name in config.attribute_map.items() if name in changes}
        self.__dict__.update(changes | aliases, seen=config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "seen" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.seen, name)


@contextlib.contextmanager
def without_layers(config: PreTrainedConfig) -> Iterator[None]:
    """Make a plain class build everything of a model except its layers, within this context."""
    count = config.num_hidden_layers
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = count


class _InitializedAsPlain:
    """Enables a family's own weight initialization, which transformers skips for custom classes."""

    @classmethod
    def is_custom_code(cls) -> bool:
        return False


class PerLayerModel(_InitializedAsPlain):
    """Builds each layer of a model without LM head from the layer's own sizes."""

    layer_class: type[nn.Module]

    def __init__(self, config: PerLayerConfig):
        with without_layers(config):
            super().__init__(config)
        layers = [
            self.layer_class(LayerView(config, config.layer_overrides[index]), layer_idx=index)
            for index in range(config.num_hidden_layers)
        ]
        # The families' names of the layer list differ; it is the only `ModuleList`.
        (name,) = (name for name, child in self.named_children() if isinstance(child, nn.ModuleList))
        setattr(self, name, nn.ModuleList(layers))
        self.post_init()


class PerLayerForCausalLM(Thinking, _InitializedAsPlain):
    """Adds a model's LM head to a `PerLayerModel`, and the way that its config's `thinking` answers."""

    model_class: type[PreTrainedModel]

    def __init__(self, config: PerLayerConfig):
        with without_layers(config):
            super().__init__(config)
        setattr(self, self.base_model_prefix, self.model_class(config))
        self.post_init()
        self.loop_as_trained()


class Phi3Rope:
    """Allows factors per rotary frequency in a Phi-3 with fewer heads."""

    def validate_rope(self):
        """Skip Phi-3's own check, which assumes that the head size is the width divided by the heads."""
        super(Phi3Config, self).validate_rope()


class GPTNeoXSizes:
    """The per-layer sizes of GPT-NeoX, which has one key/value head per query head."""

    layer_keys = ("num_attention_heads", "intermediate_size")


class CopraGPTNeoXAttention(GPTNeoXAttention):
    """`GPTNeoXAttention` whose heads need not fill the model's width."""

    def __init__(self, config: LayerView, layer_idx: int):
        # Internally this is the attention of a model as wide as all heads together; only its two
        # projections have the model's own width as input and output.
        width = config.num_attention_heads * config.head_dim
        super().__init__(LayerView(config, {"hidden_size": width}), layer_idx=layer_idx)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * width, bias=config.attention_bias)
        self.dense = nn.Linear(width, config.hidden_size, bias=config.attention_bias)


class CopraGPTNeoXLayer(GPTNeoXLayer):
    """`GPTNeoXLayer` with a `CopraGPTNeoXAttention`."""

    def __init__(self, config: LayerView, layer_idx: int):
        super().__init__(config, layer_idx)
        self.attention = CopraGPTNeoXAttention(config, layer_idx)


class GPT2Sizes:
    """The per-layer sizes of GPT-2.

    It has its own names for them, one key/value head per query head, and 4 d neurons by default.
    """

    layer_keys = ("n_head", "n_inner")

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.n_inner is None:
            self.n_inner = 4 * self.n_embd


class CopraGPT2Attention(GPT2Attention):
    """`GPT2Attention` whose heads need not fill the model's width, as in `CopraGPTNeoXAttention`."""

    def __init__(self, config: LayerView, layer_idx: int):
        width = config.n_head * config.head_dim
        super().__init__(LayerView(config, {"n_embd": width}), layer_idx=layer_idx)
        self.embed_dim = config.n_embd
        self.c_attn = Conv1D(3 * width, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, width)


class CopraGPT2Block(GPT2Block):
    """`GPT2Block` with a `CopraGPT2Attention`."""

    def __init__(self, config: LayerView, layer_idx: int):
        # GPT-2's own attention requires heads that fill the width, as one head always does.
        super().__init__(LayerView(config, {"n_head": 1}), layer_idx=layer_idx)
        self.attn = CopraGPT2Attention(config, layer_idx)


def make_classes(
    model_type: str, layer_class: type[nn.Module], *config_mixins: type
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel], type[PreTrainedModel]]:
    """Create a family's config, model without LM head and model with LM head from the plain classes.

    Each has the name of its plain class with the prefix `Copra`, in this module.
    """
    plain = CONFIG_MAPPING[model_type]
    fields = {"layer_overrides": list[dict[str, int]] | None, "thinking": dict[str, Any] | None}
    if "head_dim" not in plain.__dataclass_fields__:
        fields["head_dim"] = int | None
    config = strict(
        _subclass(
            plain,
            (*config_mixins, PerLayerConfig),
            model_type=f"copra_{model_type}",
            __annotations__=fields,
            **dict.fromkeys(fields),
        )
    )
    model = _subclass(
        MODEL_MAPPING[plain],
        (PerLayerModel,),
        __annotations__={"config": config},
        layer_class=layer_class,
        _no_split_modules=(layer_class.__name__,),
    )
    whole = _subclass(
        MODEL_FOR_CAUSAL_LM_MAPPING[plain],
        (PerLayerForCausalLM,),
        __annotations__={"config": config},
        model_class=model,
    )
    # From here on `save_pretrained` copies this file into the checkpoint and names its classes in `auto_map`.
    config.register_for_auto_class()
    whole.register_for_auto_class("AutoModelForCausalLM")
    return config, model, whole


def _subclass(plain: type, mixins: tuple[type, ...], **attributes: Any) -> type:
    name = f"Copra{plain.__name__}"
    made = type(name, (*mixins, plain), {"__module__": __name__, "__qualname__": name, **attributes})
    globals()[name] = made
    return made


CLASSES = {
    "llama": make_classes("llama", LlamaDecoderLayer),
    "mistral": make_classes("mistral", MistralDecoderLayer),
    "qwen2": make_classes("qwen2", Qwen2DecoderLayer),
    "qwen3": make_classes("qwen3", Qwen3DecoderLayer),
    "smollm3": make_classes("smollm3", SmolLM3DecoderLayer),
    "olmo2": make_classes("olmo2", Olmo2DecoderLayer),
    "gemma": make_classes("gemma", GemmaDecoderLayer),
    "gemma2": make_classes("gemma2", Gemma2DecoderLayer),
    "gemma3_text": make_classes("gemma3_text", Gemma3DecoderLayer),
    "phi3": make_classes("phi3", Phi3DecoderLayer, Phi3Rope),
    "gpt_neox": make_classes("gpt_neox", CopraGPTNeoXLayer, GPTNeoXSizes),
    "gpt2": make_classes("gpt2", CopraGPT2Block, GPT2Sizes),
}
"""The three classes of each family, by the model type of the plain ones."""


def register() -> None:
    """Register these classes with transformers' Auto classes; calling it again is harmless."""
    for config, _, model in CLASSES.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
