"""The plain model that a looped one equals: a layer of its own for each visit, with a copy of the weights."""

import copy
import re
import types

from transformers import PreTrainedModel

PER_LAYER = ("layer_overrides", "layer_types", "no_rope_layers")


def unrolled(model: PreTrainedModel, visits: list[int]) -> PreTrainedModel:
    """Return a plain model whose layers are copies of an ordinary model's, in the order of `visits`."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(visits)
    for key in PER_LAYER:
        if values := getattr(config, key, None):
            setattr(config, key, [values[index] for index in visits])
    made = type(model)(config).to(model.dtype).eval()
    state = model.state_dict()
    made.load_state_dict({name: state[source_name(name, visits)] for name in made.state_dict()})
    # Norms of the tests' own, which do not compute in float32.
    patched = {type(each): each.forward.__func__ for each in model.modules() if "forward" in vars(each)}
    for each in made.modules():
        if type(each) in patched:
            each.forward = types.MethodType(patched[type(each)], each)
    return made


def source_name(name: str, visits: list[int]) -> str:
    """Return the name of the ordinary model's weight that a weight of the unrolled one copies."""
    return re.sub(r"\.(h|layers)\.(\d+)\.", lambda found: f".{found[1]}.{visits[int(found[2])]}.", name)
