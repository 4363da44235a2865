import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.configuration_utils import get_head_shapes

from copra.models.per_layer import CopraGPT2Config, CopraGPT2LMHeadModel
from copra.models.shape import shape_of
from copra.schema.shape import LayerShape, ModelShape

OVERRIDES = [{"n_head": 2, "n_inner": 40}, {}, {"n_head": 3, "n_inner": 24}]
SIZES = {
    "vocab_size": 60,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 5,
    "head_dim": 8,
    "n_inner": 48,
    "n_positions": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


def config(**changes) -> CopraGPT2Config:
    return CopraGPT2Config(**{**SIZES, "layer_overrides": OVERRIDES, **changes})


def make(**changes) -> CopraGPT2LMHeadModel:
    """A model with large random weights and biases, so that different prompts give different text."""
    torch.manual_seed(0)
    model = CopraGPT2LMHeadModel(config(initializer_range=0.3, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


@pytest.fixture
def model() -> CopraGPT2LMHeadModel:
    return make()


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(1))


def test_each_layer_has_its_own_sizes(model):
    shapes = [
        [tuple(part.weight.shape) for part in (h.attn.c_attn, h.attn.c_proj, h.mlp.c_fc, h.mlp.c_proj)]
        for h in model.transformer.h
    ]
    assert shapes == [
        [(32, 48), (16, 32), (32, 40), (40, 32)],
        [(32, 120), (40, 32), (32, 48), (48, 32)],
        [(32, 72), (24, 32), (32, 24), (24, 32)],
    ]
    layers = (LayerShape(2, 2, 8, 40), LayerShape(5, 5, 8, 48), LayerShape(3, 3, 8, 24))
    assert shape_of(model.config.to_dict()) == ModelShape("gpt2", 32, 60, 2, layers)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_is_gpt2_written_out_head_by_head(model, input_ids, attention):
    """Pre-norm blocks; every head has its own D columns of q, k and v, and D rows of c_proj."""
    model.set_attn_implementation(attention)
    body = model.transformer
    hidden = body.wte.weight[input_ids] + body.wpe.weight[:9]
    future = torch.ones(9, 9).triu(1).bool()
    for block, heads in zip(body.h, (2, 5, 3), strict=True):
        normed = functional.layer_norm(hidden, (32,), block.ln_1.weight, block.ln_1.bias)
        weight, bias, out = block.attn.c_attn.weight, block.attn.c_attn.bias, block.attn.c_proj
        for head in range(heads):
            q, k, v = (
                normed @ weight[:, first : first + 8] + bias[first : first + 8]
                for first in (8 * (part * heads + head) for part in range(3))
            )
            scores = (q @ k.transpose(1, 2) / math.sqrt(8)).masked_fill(future, -torch.inf)
            hidden = hidden + scores.softmax(-1) @ v @ out.weight[8 * head : 8 * head + 8]
        hidden = hidden + out.bias
        normed = functional.layer_norm(hidden, (32,), block.ln_2.weight, block.ln_2.bias)
        inner = functional.gelu(normed @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")
        hidden = hidden + inner @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    expected = functional.layer_norm(hidden, (32,), body.ln_f.weight, body.ln_f.bias) @ body.wte.weight.T
    assert torch.allclose(model(input_ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "changes", [{}, {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}]
)
def test_without_overrides_it_is_gpt2(input_ids, attention, changes):
    """In training with dropout too, to the last gradient."""
    sizes = {name: value for name, value in SIZES.items() if name not in ("head_dim", "n_inner")}
    sizes |= {"n_head": 4, "attn_implementation": attention, **changes}
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(**sizes)).train()
    ours = CopraGPT2LMHeadModel(CopraGPT2Config(**sizes)).train()
    ours.load_state_dict(plain.state_dict())
    assert shape_of(ours.config.to_dict()) == shape_of(plain.config.to_dict())
    for one in (plain, ours):
        torch.manual_seed(3)
        one(input_ids, labels=input_ids).loss.backward()
    ours_by_name = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, ours_by_name[name].grad), name
    torch.manual_seed(4)
    assert not torch.equal(ours(input_ids).logits, ours(input_ids).logits), "dropout is at work"
    assert torch.equal(ours.eval()(input_ids).logits, plain.eval()(input_ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_overrides": OVERRIDES[:2]}, "2 entries for 3 layers"),
        ({"layer_overrides": [{"n_embd": 8}, {}, {}]}, r"\[0\]: unknown keys \['n_embd'\]"),
        ({"layer_overrides": [{}, {"n_head": 0}, {}]}, "layer 1: 0 heads"),
        ({"add_cross_attention": True}, "no cross-attention"),
    ],
)
def test_illegal_configs_are_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        config(**changes)


def test_weights_start_as_those_of_gpt2():
    """Normal with the config's deviation; output projections with that over sqrt(2 layers)."""
    torch.manual_seed(0)
    model = CopraGPT2LMHeadModel(config(n_embd=256, initializer_range=0.05))
    for block in model.transformer.h:
        for part, expected in ((block.attn.c_attn, 0.05), (block.attn.c_proj, 0.05 / math.sqrt(6))):
            assert part.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert not part.bias.any()


def test_layers_follow_the_attention_implementation_of_the_model(model, input_ids):
    sdpa = model(input_ids).logits
    model.set_attn_implementation("eager")
    output = model(input_ids, output_attentions=True, output_hidden_states=True)
    assert [attention.shape for attention in output.attentions] == [(2, heads, 9, 9) for heads in (2, 5, 3)]
    assert [hidden.shape for hidden in output.hidden_states] == [(2, 9, 32)] * 4
    assert torch.allclose(output.logits, sdpa, atol=1e-5)


def test_embeddings_can_take_the_place_of_tokens(model, input_ids):
    embeddings = model.get_input_embeddings()(input_ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(input_ids).logits)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(model, input_ids):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        model.zero_grad()
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        gradients.append(model.transformer.h[0].attn.c_attn.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_transformers_is_told_the_heads_of_every_layer(model):
    """It asks before it makes a cache of fixed size ahead of the first pass."""
    assert get_head_shapes(model.config) == ([2, 5, 3], 8)
