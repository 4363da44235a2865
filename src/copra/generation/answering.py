"""Generate the answers of a checkpoint."""

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache

from copra.data.sequences import GenerationSpec
from copra.data.tokenization import pad_id
from copra.generation.compiled import Compiled
from copra.generation.decode import Answer, GetOrGenerate, decode
from copra.generation.prompts import Prompts
from copra.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class GenerationOptions:
    """The limits of generation.

    `force_length` generates `max_new_tokens` for every prompt without stopping, for timing.
    """

    max_new_tokens: int
    batch_size: int = 128
    force_length: bool = False


def generate(
    checkpoint: Checkpoint,
    prompts: Prompts,
    decoding: GenerationSpec | None,
    options: GenerationOptions,
    *,
    prefix_cache: Cache | None = None,
    answer_cache: GetOrGenerate | None = None,
    compiled: Compiled | None = None,
    latents: Tensor | None = None,
) -> list[Answer]:
    """Return the greedy answers of a checkpoint to prompts, in their order, see `copra.generation.decode`.

    `decoding` is usually the checkpoint's own. `prefix_cache` is that of the prompts' common prefix,
    `answer_cache` caches the answers of each batch, `compiled` is the checkpoint's model in compiled form,
    `latents` [N, n, d] are the embeddings fed at the latent positions (None: the model's own).
    """
    return decode(
        checkpoint.model,
        prompts.prompts,
        decoding,
        stop=checkpoint.tokenizer.eos_token_id,
        pad=pad_id(checkpoint.tokenizer),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        force_length=options.force_length,
        extra_modules=checkpoint.extra_modules,
        prefix=prompts.prefix,
        prefix_cache=prefix_cache,
        ends=prompts.ends,
        answer_cache=answer_cache,
        compiled=compiled,
        latents=latents,
    )
