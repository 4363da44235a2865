"""Checkpoints as GGUF files, for llama.cpp and the programs that are made of it.

Layers that are alike make a plain `llama`; layers of unequal sizes make a `deci`, whose numbers of heads and
neurons are lists with a value per layer.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from copra.models.checkpoint import Checkpoint
from copra.models.exported import check_family, decoding_of
from copra.schema.conversion import FAMILIES
from copra.schema.shape import ModelShape
from copra.utils.errors import CopraError
from copra.utils.files import replacing

if TYPE_CHECKING:
    import gguf

WeightKind = Literal["f32", "f16", "q8_0", "q4_0"]
DECODING = "copra.decoding"
"""Key of what follows a prompt, as JSON: see `copra.models.exported`."""
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
}
"""The parts of names of weights in transformers, and what llama.cpp calls them."""
LLAMA_3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
"""The beginning of the pattern by which Llama 3 splits texts."""


def write_gguf(checkpoint: Checkpoint, path: Path, kind: WeightKind = "f16") -> None:
    """Write a checkpoint with its tokenizer and its decoding as a GGUF file, complete or absent.

    Quantized are the matrices whose rows are whole blocks of 32; the others are kept in half precision, and
    vectors in single precision.

    Raises:
        CopraError: the model, its tokenizer or its decoding has no form in GGUF.
    """
    import gguf
    from gguf import quants

    check_family(checkpoint, "GGUF", FAMILIES["gguf"])
    decoding = decoding_of(checkpoint, "GGUF")
    shape = checkpoint.manifest.shape
    config = checkpoint.model.config
    is_uniform = len(set(shape.layers)) == 1
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama" if is_uniform else "deci")
        _add_sizes(writer, shape, config, is_uniform)
        _add_tokenizer(writer, checkpoint)
        writer.add_name(checkpoint.manifest.node)
        writer.add_string(DECODING, json.dumps(decoding))
        for name, weight in _weights(checkpoint.model, shape, config):
            stored_as = _type(weight, kind)
            stored = quants.quantize(weight.float().contiguous().numpy(), stored_as)
            writer.add_tensor(name, stored, raw_dtype=stored_as)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_sizes(writer: "gguf.GGUFWriter", shape: ModelShape, config: Any, is_uniform: bool) -> None:
    """Write the sizes of a model, as lists if its layers are unequal."""

    def sizes(values: list[int]) -> Any:
        return values[0] if is_uniform else values

    (head_dim,) = {layer.head_dim for layer in shape.layers}
    theta = getattr(config, "rope_parameters", None) or {}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(len(shape.layers))
    writer.add_feed_forward_length(sizes([layer.ffn for layer in shape.layers]))
    writer.add_head_count(sizes([layer.query_heads for layer in shape.layers]))
    writer.add_head_count_kv(sizes([layer.kv_heads for layer in shape.layers]))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(theta.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: "gguf.GGUFWriter", checkpoint: Checkpoint) -> None:
    """Write the tokenizer.

    Raises:
        CopraError: it is not byte-level BPE.
    """
    import gguf

    tokenizer = checkpoint.tokenizer
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    if made["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(made["pre_tokenizer"]):
        raise CopraError(
            f"{checkpoint.manifest.node}: its tokenizer is not byte-level BPE, which llama.cpp needs. Bases "
            "from scratch have one with `tokenizer: bpe`."
        )
    added = {token["id"]: token for token in made["added_tokens"]}
    names = {number: text for text, number in made["model"]["vocab"].items()}
    tokens, types = [], []
    for number in range(checkpoint.manifest.shape.vocabulary):
        if number in added:
            tokens.append(added[number]["content"])
            special = added[number]["special"]
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            # Rows of the embedding beyond the tokenizer's tokens are there for faster matrix products.
            tokens.append(names.get(number, f"[unused {number}]"))
            types.append(gguf.TokenType.NORMAL if number in names else gguf.TokenType.UNUSED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in made["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(checkpoint.manifest.node, made["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(starts)


def _pre_tokenizer(node: str, made: dict[str, Any]) -> str:
    """Return llama.cpp's name of the way that texts are split before pairs of bytes are merged.

    Raises:
        CopraError: it is not known.
    """
    parts = made["pretokenizers"] if made["type"] == "Sequence" else [made]
    patterns = [
        part["pattern"].get("Regex", part["pattern"].get("String")) for part in parts if "pattern" in part
    ]
    if any(str(pattern).startswith(LLAMA_3) for pattern in patterns):
        return "llama-bpe"
    if any(pattern != "\n" for pattern in patterns):
        raise CopraError(f"{node}: its tokenizer splits texts by a pattern of its own, {patterns[0]!r}.")
    # A line break is a piece of its own in both.
    return "smollm" if any(part["type"] == "Digits" for part in parts) else "gpt-2"


def _weights(model: torch.nn.Module, shape: ModelShape, config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights with llama.cpp's names, and in its order of the channels of queries and keys."""
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            layer = shape.layers[int(name.split(".")[2])]
            weight = neighbours(weight, layer.query_heads if "q_proj" in name else layer.kv_heads)
        for old, new in NAMES.items():
            name = name.replace(old, new)
        yield name, weight.detach().cpu()
    if (factors := rope_factors(config, shape.layers[0].head_dim)) is not None:
        yield "rope_freqs.weight", factors


def neighbours(weight: Tensor, heads: int) -> Tensor:
    """Return a projection [H*D, ...] with the two halves of each head interleaved.

    transformers rotates a channel with the one half a head away, llama.cpp with its neighbour.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def rope_factors(config: Any, head_dim: int) -> Tensor | None:
    """Return the divisors [D/2] of rotary frequencies of Llama 3 (None: there are none).

    Raises:
        CopraError: the frequencies are scaled in another way.
    """
    scaling = getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type", "default") == "default":
        return None
    if scaling["rope_type"] != "llama3":
        raise CopraError(f"rotary positions of type {scaling['rope_type']!r} have no form in GGUF here.")
    factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    longest = scaling["original_max_position_embeddings"]
    found = []
    for channel in range(0, head_dim, 2):
        turns = longest / (2 * math.pi * scaling["rope_theta"] ** (channel / head_dim))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(found)


def _type(weight: Tensor, kind: WeightKind) -> "gguf.GGMLQuantizationType":
    import gguf

    types = gguf.GGMLQuantizationType
    if weight.dim() < 2:
        return types.F32
    wanted = types[kind.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if weight.shape[-1] % block == 0 else types.F16
