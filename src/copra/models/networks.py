"""Networks that a reasoning method adds to a language model, and that answering needs.

This file travels with checkpoints (see `copra.models.thinking`), so it imports only torch and transformers.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .hooks import before_blocks, decoder_layers, gather_positions, scatter_positions


class Projection(nn.Sequential):
    """Maps a hidden state [..., d] to a latent's input embedding [..., d] (CODI, 2502.21074, section 3.1)."""

    def __init__(self, model: PreTrainedModel):
        d = model.config.hidden_size
        super().__init__(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d))


class MindReader(nn.Module):
    """One network per layer that maps a teacher's states to the student's (2311.01460, section 3.1)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        d = model.config.hidden_size
        self.layers = nn.ModuleList(_network(d, d) for _ in decoder_layers(model))

    def forward(self, states: Tensor) -> Tensor:
        """Return replacements [L, B, d] of the hidden state before each block, from states [L, B, d]."""
        return torch.stack([layer(state) for layer, state in zip(self.layers, states, strict=True)])


class Emulator(nn.Module):
    """Predicts a teacher's states from the question alone (2311.01460, section 3.2).

    A decoder reads the question. At the question's last position, before each block l, a network maps
    the hidden state and a mixture embedding (one, as the mixture has one component) to f_l, the
    prediction. f_l plus the context c_(l-1) is the input of an LSTM cell that recurs over the layers; its
    output o_l gives the key k_l and, by attention over the keys of the layers below, the context c_l. A
    linear map of o_l and c_l replaces the hidden state. The output of the highest block is computed but
    unused, as in the paper's code.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        d = model.config.hidden_size
        self.body = cast(PreTrainedModel, copy.deepcopy(model.base_model))
        self.networks = nn.ModuleList(_network(2 * d, d) for _ in decoder_layers(model))
        self.mixture = nn.Parameter(torch.randn(d))
        self.cell = nn.LSTMCell(d, d)
        self.query, self.key = nn.Linear(d, d), nn.Linear(d, d)
        self.output = nn.Linear(2 * d, d)

    def forward(self, inputs: Tensor, mask: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
        """Return predictions f [L, B, d] from token ids, mask and positions [B, T].

        `columns` [B] are the question's last positions.
        """
        found: list[Tensor] = []
        keys: list[Tensor] = []
        context, state = torch.zeros((), device=inputs.device), None

        def emulate(index: int, hidden: Tensor) -> Tensor:
            nonlocal context, state
            here = gather_positions(hidden, columns)
            found.append(self.networks[index](torch.cat([here, self.mixture.expand_as(here)], dim=-1)))
            state = self.cell(found[-1] + context, state)
            context = self._context(state[0], keys)
            keys.append(self.key(state[0]))
            return scatter_positions(hidden, columns, self.output(torch.cat([state[0], context], dim=-1)))

        with before_blocks(self.body, emulate):
            self.body(input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=False)
        return torch.stack(found)

    def _context(self, output: Tensor, keys: list[Tensor]) -> Tensor:
        """Return the attention [B, d] of an output over the keys of the layers below; zero in the lowest."""
        if not keys:
            return torch.zeros_like(output)
        below = torch.stack(keys, dim=1)
        scores = below @ self.query(output)[:, :, None]
        return (scores.transpose(1, 2).softmax(-1) @ below).squeeze(1)


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Return hidden states [B, T, d] of pieces along the columns; a single piece is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces), dim=1)


def latent_feed(
    model: PreTrainedModel,
    latent_input: Literal["raw", "scaled", "projected"],
    projection: nn.Module | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return the function from a hidden state [..., d] to a latent's input embedding [..., d]."""
    if latent_input == "projected":
        if projection is None:
            raise ValueError("projected latents need their projection")
        return projection
    if latent_input == "raw":
        return lambda hidden: hidden
    norm = embedding_norm(model)
    return lambda hidden: hidden * (norm / hidden.float().norm(dim=-1, keepdim=True)).to(hidden.dtype)


@torch.no_grad()
def embedding_norm(model: PreTrainedModel) -> Tensor:
    """Return the mean norm [] of the input embeddings, without gradient.

    Gemma's are scaled by its `embed_scale`.
    """
    embedding = model.get_input_embeddings()
    norm = embedding.get_parameter("weight").float().norm(dim=-1).mean()
    return norm * getattr(embedding, "embed_scale", 1.0)


def _network(wide: int, d: int) -> nn.Sequential:
    """Return the two-layer network of 2311.01460: `wide` to 4d to d."""
    return nn.Sequential(nn.Linear(wide, 4 * d), nn.ReLU(), nn.Linear(4 * d, d))


NETWORKS: dict[str, type[nn.Module]] = {
    "projection": Projection,
    "mind_reader": MindReader,
    "emulator": Emulator,
}
"""The networks by their names in manifests."""
