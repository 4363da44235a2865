"""Extra modules that a reasoning method adds to a language model, by their names in manifests.

A module is created for a model by `EXTRA_MODULES[name](model, **settings)`, with random weights or the
model's own.
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.models.anatomy import blocks
from copra.models.families import family_of
from copra.models.hooks import before_blocks, gather_positions, scatter_positions


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
        self.layers = nn.ModuleList(_network(d, d) for _ in blocks(model))

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
        self.networks = nn.ModuleList(_network(2 * d, d) for _ in blocks(model))
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


class StepDecoder(nn.Module):
    """An auxiliary decoder that predicts a step from its latents (SIM-CoT, 2509.20317, section 3).

    With a number of `layers` it has that many blocks of the model's kind with random weights, and the LM head
    is the model's. With None it is a copy of the model including its LM head. It reads the model's
    embeddings.
    """

    def __init__(self, model: PreTrainedModel, layers: int | None):
        super().__init__()
        body = copy.deepcopy(model.base_model) if layers is None else _small_body(model, layers)
        self.body = cast(PreTrainedModel, body)
        self.body.set_input_embeddings(None)  # type: ignore[arg-type]  # it gets embeddings
        self.head = copy.deepcopy(model.get_output_embeddings()) if layers is None else None

    def start_from(self, model: PreTrainedModel) -> None:
        """Load the weights of another model of the shape that this decoder copies."""
        self.load_state_dict(StepDecoder(model, None).state_dict())

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """Return final-norm hidden states [B, T, d] of embeddings [B, T, d]; padding is on the right."""
        return self.body(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state


EXTRA_MODULES: dict[str, type[nn.Module]] = {
    "projection": Projection,
    "mind_reader": MindReader,
    "emulator": Emulator,
    "step_decoder": StepDecoder,
}


def make_extra_modules(
    model: PreTrainedModel,
    wanted: Mapping[str, Mapping[str, Any]],
    known: nn.ModuleDict | None = None,
) -> nn.ModuleDict:
    """Return the wanted extra modules: those of `known` with the same settings, new ones for the rest."""
    extra_modules = nn.ModuleDict()
    for name, settings in wanted.items():
        module: Any = known[name] if known is not None and name in known else None
        if module is None or module.settings != settings:
            module = EXTRA_MODULES[name](model, **settings).to(model.device, model.dtype)
            module.settings = dict(settings)
        extra_modules[name] = module
    return extra_modules


def _small_body(model: PreTrainedModel, layers: int) -> nn.Module:
    """Return a decoder stack of the model's kind with `layers` blocks and random weights."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    # Per-layer settings repeat from the start if the decoder has more layers than the model.
    for key in ("layer_overrides", *family_of(config.model_type).by_layer):
        if values := getattr(config, key, None):
            setattr(config, key, (values * layers)[:layers])
    return type(model.base_model)(config)


def _network(wide: int, d: int) -> nn.Sequential:
    """Return the two-layer network of 2311.01460: `wide` to 4d to d."""
    return nn.Sequential(nn.Linear(wide, 4 * d), nn.ReLU(), nn.Linear(4 * d, d))
