import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from copra.models.per_layer import CopraLlamaConfig, CopraLlamaForCausalLM
from copra.models.shape import shape_of
from copra.schema.shape import LayerShape

OVERRIDES = [
    {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 40},
    {},
    {"num_attention_heads": 6, "num_key_value_heads": 1, "intermediate_size": 24},
]
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


def config(**changes) -> CopraLlamaConfig:
    return CopraLlamaConfig(**{**SIZES, "layer_overrides": OVERRIDES, "tie_word_embeddings": True, **changes})


def make(**changes) -> CopraLlamaForCausalLM:
    """A model with large random weights, so that different prompts give different text."""
    torch.manual_seed(0)
    return CopraLlamaForCausalLM(config(initializer_range=0.3, **changes)).eval()


@pytest.fixture
def model() -> CopraLlamaForCausalLM:
    return make()


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(1))


def test_each_layer_has_its_own_sizes(model):
    shapes = [
        (layer.self_attn.q_proj.out_features, layer.self_attn.v_proj.out_features, layer.mlp.hidden_size)
        for layer in model.model.layers
    ]
    assert shapes == [(16, 8, 32), (48, 24, 32), (48, 8, 32)]
    assert [layer.mlp.down_proj.in_features for layer in model.model.layers] == [40, 48, 24]
    assert shape_of(model.config.to_dict()).layers == (
        LayerShape(2, 1, 8, 40),
        LayerShape(6, 3, 8, 48),
        LayerShape(6, 1, 8, 24),
    )


def test_without_overrides_it_is_llama():
    sizes = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
    plain = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    ours = CopraLlamaForCausalLM(CopraLlamaConfig(**sizes)).eval()
    ours.load_state_dict(plain.state_dict())
    input_ids = torch.arange(12)[None]
    assert torch.equal(ours(input_ids).logits, plain(input_ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_overrides": OVERRIDES[:2]}, "2 entries for 3 layers"),
        ({"layer_overrides": [{"hidden_size": 8}, {}, {}]}, r"\[0\]: unknown keys \['hidden_size'\]"),
        ({"layer_overrides": [{}, {"num_key_value_heads": 4}, {}]}, "layer 1: 6 heads"),
    ],
)
def test_illegal_overrides_are_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        config(**changes)


def test_layers_follow_the_attention_implementation_of_the_model(model, input_ids):
    sdpa = model(input_ids).logits
    assert model(input_ids, output_attentions=False).attentions is None
    model.set_attn_implementation("eager")
    output = model(input_ids, output_attentions=True)
    assert [attention.shape[1] for attention in output.attentions] == [2, 6, 6]
    assert torch.allclose(output.logits, sdpa, atol=1e-5)
