"""Base models: from the Hub, from a folder, or made from scratch; given the latent markers."""

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from copra.errors import CopraError
from copra.models.checkpoint import register
from copra.models.settings import Base, FromScratch
from copra.models.shape import shape_of
from copra.models.tokens import MARKERS, pad_id, train_tokenizer
from copra.tasks.task import Row


def make_base(
    base: Base, rows: Sequence[Row], seed: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with its markers, and its tokenizer.

    `rows` train the tokenizer of a model from scratch, `seed` draws its weights; both are unused
    otherwise.

    Raises:
        CopraError: the model cannot be had, or is of a kind that copra does not know.
    """
    if base.from_scratch is not None:
        tokenizer = train_tokenizer(base.from_scratch, rows)
        tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
        set_seed(seed or 0)
        return _random_model(base.from_scratch, tokenizer).to(getattr(torch, base.dtype)), tokenizer
    model, tokenizer = _pretrained(base)
    add_markers(model, tokenizer)
    return model, tokenizer


def add_markers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the latent markers as new tokens, in the tokenizer and in the embedding."""
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(MARKERS)}, replace_extra_special_tokens=False
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    start_markers(model, tokenizer)


@torch.no_grad()
def start_markers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the markers' rows, in the embedding and in an untied LM head, to the row of `<<`.

    Done when markers are first trained, as in the reference code of 2412.06769. A tokenizer that does not
    know `<<` gives its first piece, or else the line break, which a step begins after just as well.
    """
    first = tokenizer("<<", add_special_tokens=False)["input_ids"][0]
    if first == tokenizer.unk_token_id:
        first = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    ids = tokenizer.convert_tokens_to_ids(list(MARKERS))
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        module.weight[ids] = module.weight[first].clone()


def _pretrained(base: Base) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place = str(base.folder or base.path)
    options = {"revision": base.revision or "main", "trust_remote_code": base.trust_remote_code}
    register()
    try:
        _check_type(place, options["revision"])
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=getattr(torch, base.dtype), use_safetensors=True, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CopraError(
            f"base model {base.path!r} could not be loaded: {error}\nGive a local folder or a Hub id under "
            "bases.<name>.path; for a gated model log in with `hf auth login` first."
        ) from error
    if tokenizer.eos_token_id is None:
        raise CopraError(f"base model {base.path!r}: its tokenizer has no end token, so answers cannot end.")
    return model, tokenizer


def _check_type(place: str, revision: str) -> None:
    """Refuse a model of an unknown type before its weights are fetched."""
    config, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
    try:
        if config:
            shape_of(config)
    except CopraError as error:
        raise CopraError(f"base model {place!r}: {error}") from None


def _random_model(spec: FromScratch, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad_id(tokenizer),
        "tie_word_embeddings": spec.tied,
        "initializer_range": spec.initializer_range,
    }
    if spec.architecture == "llama":
        config = LlamaConfig(
            hidden_size=spec.hidden_size,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv_heads or spec.heads,
            head_dim=spec.hidden_size // spec.heads,
            intermediate_size=spec.ffn_size,
            max_position_embeddings=spec.context,
            rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
            **tokens,
        )
        return LlamaForCausalLM(config)
    config = GPT2Config(
        n_embd=spec.hidden_size,
        n_layer=spec.layers,
        n_head=spec.heads,
        n_inner=spec.ffn_size,
        n_positions=spec.context,
        embd_pdrop=spec.dropout,
        attn_pdrop=spec.dropout,
        resid_pdrop=spec.dropout,
        **tokens,
    )
    return GPT2LMHeadModel(config)
