"""Extra modules that a reasoning method adds to a language model, by their names in manifests.

A module is created for a model by `module_type(name)(model, **settings)`, with random weights or the
model's own.
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.models.families import family_of
from copra.models.networks import NETWORKS
from copra.utils.errors import CopraError
from copra.utils.plugins import plugins_of
from copra.utils.problems import shown


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


EXTRA_MODULES: dict[str, type[nn.Module]] = {**NETWORKS, "step_decoder": StepDecoder}
"""copra's own modules; `module_type` finds those of plugins too."""


def module_type(name: str) -> type[nn.Module]:
    """Return the class of an extra module.

    Raises:
        CopraError: neither copra nor an installed package has it, or its plugin cannot be loaded.
    """
    if name in EXTRA_MODULES:
        return EXTRA_MODULES[name]
    plugins = plugins_of("copra.extra_modules", EXTRA_MODULES)
    if name not in plugins:
        raise CopraError(
            f"the model has an extra module {shown(name)}, which is not known. Install the package whose "
            "method made it: its name is an entry point in the group copra.extra_modules."
        )
    return plugins[name].load(nn.Module)


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
            module = module_type(name)(model, **settings).to(model.device, model.dtype)
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
