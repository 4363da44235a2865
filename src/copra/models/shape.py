"""The sizes of a model that its cost depends on, read from its config alone (no torch)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from copra.errors import CopraError

# Model types whose blocks are named and wired as Llama's are: q/k/v/o and gate/up/down projections.
LLAMA_LIKE = ("llama", "copra_llama", "mistral", "qwen2", "qwen3")
# And as GPT-2's: one projection for q, k and v, two of the FFN, all stored as (in, out).
GPT2_LIKE = ("gpt2", "copra_gpt2")
KNOWN = f"{' and '.join(GPT2_LIKE)}, and the Llama-like types {', '.join(LLAMA_LIKE)}"


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer: H query heads and K key/value heads of size D, FFN of width I."""

    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int


@dataclass(frozen=True)
class ModelShape:
    """All sizes of a decoder: hidden width d, vocabulary V, and its layers from bottom to top.

    `ffn_matrices` is 3 for gate, up and down, and 2 for GPT-2's pair.
    """

    family: str
    hidden: int
    vocabulary: int
    ffn_matrices: int
    layers: tuple[LayerShape, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "ModelShape":
        return ModelShape(**{**value, "layers": tuple(LayerShape(**layer) for layer in value["layers"])})

    def with_layers(self, layers: tuple[LayerShape, ...]) -> "ModelShape":
        return replace(self, layers=layers)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape behind a Hugging Face config, given as the dictionary of its config.json.

    Raises:
        CopraError: the model type is neither GPT-2 nor Llama-like.
    """
    kind = config.get("model_type")
    if kind in GPT2_LIKE:
        hidden, heads = config["n_embd"], config["n_head"]
        head_dim, ffn = config.get("head_dim") or hidden // heads, config.get("n_inner") or 4 * hidden
        layers = [LayerShape(heads, heads, head_dim, ffn)] * config["n_layer"]
        for index, override in enumerate(config.get("layer_overrides") or []):
            own_heads = override.get("n_head", heads)
            layers[index] = LayerShape(own_heads, own_heads, head_dim, override.get("n_inner", ffn))
        return ModelShape("gpt2", hidden, config["vocab_size"], 2, tuple(layers))
    if kind in LLAMA_LIKE:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        layer = LayerShape(
            query_heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            ffn=config["intermediate_size"],
        )
        layers = [layer] * config["num_hidden_layers"]
        for index, override in enumerate(config.get("layer_overrides") or []):
            layers[index] = replace(
                layer,
                query_heads=override.get("num_attention_heads", layer.query_heads),
                kv_heads=override.get("num_key_value_heads", layer.kv_heads),
                ffn=override.get("intermediate_size", layer.ffn),
            )
        return ModelShape("llama", hidden, config["vocab_size"], 3, tuple(layers))
    raise CopraError(f"model_type {kind!r} is not supported: copra knows {KNOWN}.")
