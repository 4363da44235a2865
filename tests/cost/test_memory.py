"""The memory of a training step, against the tensors that PyTorch keeps for the backward pass."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from copra.cost.memory import training_bytes
from copra.models.shape import shape_of

SIZES = {"num_attention_heads": 8, "vocab_size": 300}


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 64, "num_hidden_layers": 3, "num_key_value_heads": 4, "intermediate_size": 192},
        {"hidden_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 2048},
    ],
)
def test_activations_are_those_that_pytorch_keeps(sizes):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **sizes))
    tokens, kept = torch.randint(0, 60, (4, 48)), {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # The tensor is held, so that no other one takes its place.
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(tokens)
    shape = shape_of(model.config.to_dict())
    expected = sum(size for size, _ in kept.values())
    assert training_bytes(shape, 0, 0, tokens.numel(), 0) == pytest.approx(expected, rel=0.15)


def test_weights_have_a_gradient_and_two_moments_where_they_are_trained():
    shape = shape_of(LlamaConfig(**SIZES, hidden_size=64).to_dict())
    assert training_bytes(shape, 100, 100, 0, 0) == 100 * 4 * 4
    assert training_bytes(shape, 100, 10, 0, 0, weight_bytes=2) == 100 * 2 + 10 * 3 * 2
    assert training_bytes(shape, 0, 0, 0, 5) == 5 * 300 * 3 * 4
