"""The embeddings that a checkpoint feeds at the latent positions of each question."""

import torch
from torch import Tensor

from copra.data.sequences import GenerationSpec
from copra.data.tokenization import pad_id
from copra.generation.decode import batches_by_length
from copra.generation.prompts import Prompts
from copra.generation.session import DecodingSession
from copra.models.checkpoint import Checkpoint
from copra.utils import processes


@torch.inference_mode()
def latent_inputs(
    checkpoint: Checkpoint, prompts: Prompts, decoding: GenerationSpec, batch_size: int
) -> Tensor:
    """Return the inputs [N, n, d] of the latents of each prompt as last fed, on the CPU.

    They are raw, scaled or projected hidden states, as the model reads them; with Jacobi iterations those of
    the last one. `decoding` must have recurrent latents. Several processes share the batches: all must call
    this, and each gets all inputs.
    """
    pad, whole = pad_id(checkpoint.tokenizer), [[*prompts.prefix, *prompt] for prompt in prompts.prompts]
    own = []
    for batch in processes.shard(batches_by_length(whole, batch_size)):
        asked = [whole[i] for i in batch]
        session = DecodingSession(checkpoint.model, asked, decoding, pad, checkpoint.extra_modules)
        session.prefill()
        assert session.latent_inputs is not None
        own.append((batch, session.latent_inputs.cpu()))
    pairs = [pair for part in processes.all_gather(own) for pair in part]
    order = torch.tensor([i for batch, _ in pairs for i in batch])
    return torch.cat([inputs for _, inputs in pairs])[order.argsort()]
