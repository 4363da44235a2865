"""Loop a model in memory as its settings say; `copra.models.visits` has how."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from copra.models.anatomy import blocks
from copra.models.families import family_of
from copra.models.visits import visit_layers
from copra.schema.loop import Loop
from copra.utils.errors import CopraError


def loop_layers(model: PreTrainedModel, loop: Loop | None) -> None:
    """Loop an ordinary model in place (None: leave it as it is).

    Raises:
        CopraError: the model does not have the layers of the block, or the visits are too many.
    """
    if loop is None:
        return
    layers = len(blocks(model))
    if problem := loop.problem(layers, "The model"):
        raise CopraError(f"loop.{problem}")
    visit_layers(model, loop.visits(layers), settings_by_layer(model.config.model_type))


def settings_by_layer(model_type: str) -> Sequence[str]:
    """Return the settings in the config of a model type that have one value per layer.

    Raises:
        CopraError: the model type is not supported.
    """
    return ("layer_overrides", *family_of(model_type).by_layer)
