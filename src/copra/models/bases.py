"""Create base models, from the Hub, a folder or from scratch, and add the latent markers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from copra.data.tokenization import MARKERS, first_token, pad_id, train_tokenizer
from copra.models.base_config import config_of
from copra.models.base_files import absence_problem, base_problem, quantization_problem
from copra.models.checkpoint import register
from copra.models.families import family_of
from copra.models.loading import load_language_model
from copra.models.portable import unmarked
from copra.models.shape import shape_of
from copra.schema.base import Base, FromScratch
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, read_json


def make_base(
    base: Base, rows: Sequence[Row], seed: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the base model with its markers, and its tokenizer.

    For a model from scratch, `rows` train the tokenizer and `seed` draws the weights; both are unused
    otherwise.

    Raises:
        CopraError: the model cannot be loaded, or its type is not supported.
    """
    tokenizer: PreTrainedTokenizerBase
    if base.from_scratch is not None:
        tokenizer = train_tokenizer(base.from_scratch, rows)
        tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
        set_seed(seed or 0)
        return _random_model(base.from_scratch, tokenizer).to(getattr(torch, base.dtype)), tokenizer
    model, tokenizer = _pretrained(base)
    add_markers(model, tokenizer)
    if not brings_trained_markers(base):
        # As copies of another token they would take part of its probability: the model would score worse
        # than without them. A model from scratch is trained on its whole vocabulary.
        model.generation_config.suppress_tokens = tokenizer.convert_tokens_to_ids(list(MARKERS))
    return model, tokenizer


def brings_trained_markers(base: Base) -> bool:
    """True if a base was already trained to read the latent markers.

    For a checkpoint of copra its manifest decides. For any other model whose tokenizer has the markers it is
    assumed: it is a copy of such a checkpoint, or comes from the reference code of 2412.06769.
    """
    if base.from_scratch is not None:
        return False
    if base.folder is not None and (base.folder / MANIFEST).is_file():
        # Of any version of copra: only this entry is read.
        return bool(read_json(base.folder / MANIFEST).get("trained_markers"))
    vocabulary = _tokenizer(base).get_vocab()
    return all(marker in vocabulary for marker in MARKERS)


def add_markers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add missing latent markers as new tokens to the tokenizer and the embedding.

    Missing rows of other tokens of the tokenizer become the mean of all rows.
    """
    known, rows = tokenizer.get_vocab(), len(model.get_input_embeddings().get_parameter("weight"))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(MARKERS)}, replace_extra_special_tokens=False
    )
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
        _set_rows(model, slice(rows, None), lambda weight: weight[:rows].float().mean(0))
    start_markers(model, tokenizer, [marker for marker in MARKERS if known.get(marker, rows) >= rows])


def start_markers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, markers: Sequence[str] = MARKERS
) -> None:
    """Set the markers' rows, in the embedding and in an untied LM head, to the row of `<<`.

    Called when markers are first trained, as in the reference code of 2412.06769; from then on they are no
    longer suppressed (`copra.models.logits`). If the tokenizer has no token `<<`, the row is that of its
    first piece, or else of the line break, after which steps begin too, or of the end token if the tokenizer
    drops line breaks.
    """
    unknown = (None, tokenizer.unk_token_id)
    found = (first_token(tokenizer, text) for text in ("<<", "\n"))
    first = next((token for token in found if token not in unknown), tokenizer.eos_token_id)
    ids = tokenizer.convert_tokens_to_ids(list(markers))
    assert isinstance(ids, list)  # as those of a list
    _set_rows(model, ids, lambda weight: weight[first].clone())
    model.generation_config.suppress_tokens = None


@torch.no_grad()
def _set_rows(
    model: PreTrainedModel, ids: list[int] | slice, value: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Set rows of the embedding, and of an untied LM head, to a value computed from the weight."""
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        module.weight[ids] = value(module.weight).to(module.weight.dtype)


def _pretrained(base: Base) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name = f"bases.<name>.path: {base.path!r}"
    if (known := config_of(base)) is not None:
        family_of(known.get("model_type"))
    if problem := absence_problem(base) or base_problem(base):
        raise CopraError(f"bases.<name>.{problem}")
    register()
    place, options = _source(base)
    try:
        config = AutoConfig.from_pretrained(place, **options)
        config = unmarked(config.to_dict()) or config
        if problem := quantization_problem(config.to_dict()) if base.gguf is None else None:
            raise CopraError(f"{name} {problem}")
        shape_of(config.to_dict())
        _leave_out_unusable_pad(config)
        tokenizer = _tokenizer(base)
        model = _load(base, name, config)
    except CopraError:
        raise
    except Exception as error:  # damaged folders raise a dozen unrelated types
        raise CopraError(
            f"{name} could not be loaded: {error}\nGive a whole local folder, a .gguf file or a Hub id; for "
            "a gated model log in with `hf auth login` first."
        ) from error
    if tokenizer.eos_token_id is None:
        raise CopraError(f"{name}: its tokenizer has no end token, so answers cannot end.")
    _decode_greedily(model)
    return model, tokenizer


def _load(base: Base, name: str, config: PreTrainedConfig) -> PreTrainedModel:
    place, options = _source(base)
    if base.gguf is not None:
        options["quantization_config"] = GgufConfig(dequantize=True)
    dtype = getattr(torch, base.dtype)
    return load_language_model(place, name, config=config, dtype=dtype, **options)


def _source(base: Base) -> tuple[str, dict[str, Any]]:
    """Return the path or Hub id of a base, and the options of `from_pretrained`."""
    options = {"revision": base.revision or "main", "trust_remote_code": base.trust_remote_code}
    if base.gguf is not None:
        return str(base.gguf.parent), {**options, "gguf_file": base.gguf.name}
    return str(base.folder or base.path), options


def _tokenizer(base: Base) -> PreTrainedTokenizerBase:
    place, options = _source(base)
    return AutoTokenizer.from_pretrained(place, **options)


def _leave_out_unusable_pad(config: PreTrainedConfig) -> None:
    """Remove a pad token that is no row of the embedding from a config; padding is masked, see `pad_id`.

    Llama conversions have -1, which would freeze the last row of the embedding, or an id after the last row.
    """
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        config.pad_token_id = None


def _decode_greedily(model: PreTrainedModel) -> None:
    """Replace generation settings by greedy decoding with the same special tokens.

    Answers are greedy, and a checkpoint with sampling settings but without `do_sample` cannot be saved.
    """
    old, vocabulary = model.generation_config, model.config.vocab_size
    pad = old.pad_token_id if old.pad_token_id is not None and 0 <= old.pad_token_id < vocabulary else None
    model.generation_config = GenerationConfig(
        bos_token_id=old.bos_token_id, eos_token_id=old.eos_token_id, pad_token_id=pad
    )


def _random_model(spec: FromScratch, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad_id(tokenizer),
        "tie_word_embeddings": spec.tie_word_embeddings,
        "initializer_range": spec.initializer_range,
    }
    if spec.architecture == "llama":
        llama = LlamaConfig(
            hidden_size=spec.hidden_size,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv_heads or spec.heads,
            head_dim=spec.hidden_size // spec.heads,
            intermediate_size=spec.intermediate_size,
            max_position_embeddings=spec.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
            **tokens,
        )
        return LlamaForCausalLM(llama)
    gpt2 = GPT2Config(
        n_embd=spec.hidden_size,
        n_layer=spec.layers,
        n_head=spec.heads,
        n_inner=spec.intermediate_size,
        n_positions=spec.max_position_embeddings,
        embd_pdrop=spec.dropout,
        attn_pdrop=spec.dropout,
        resid_pdrop=spec.dropout,
        **tokens,
    )
    return GPT2LMHeadModel(gpt2)
