"""Random legal cuts of every family: what is left computes, comes back, decodes and costs what it should."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from copra.cost.flops import FlopCounter, Pass
from copra.cost.parameters import block_parameters
from copra.models.anatomy import blocks
from copra.models.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from copra.models.per_layer import CopraGPT2LMHeadModel, CopraLlamaForCausalLM
from copra.models.shape import shape_of
from copra.pruning.cut import KeptUnits
from copra.pruning.proof import masked
from copra.pruning.surgery import cut_model
from copra.schema.shape import ModelShape
from helpers.manifests import provenance

pytestmark = pytest.mark.slow

SHARED = {"vocab_size": 40, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2}
HEADS = [(4, 4), (4, 2), (4, 1), (6, 3), (8, 2), (8, 1)]
FAMILIES = ("llama", "copra_llama", "gpt2", "copra_gpt2")

any_cut = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def some(most: int):
    """A rising, non-empty choice of `most` indices."""
    return st.sets(st.integers(0, most - 1), min_size=1).map(sorted)


@st.composite
def cuts(draw, shape: ModelShape) -> KeptUnits:
    """A legal cut: in each layer the same number of query heads of some groups, and some neurons."""
    heads, neurons = [], []
    for layer in shape.layers:
        size = layer.query_heads // layer.kv_heads
        each = draw(st.integers(1, size))
        places = st.permutations(range(size)).map(lambda order, each=each: sorted(order[:each]))
        kept = [group * size + place for group in draw(some(layer.kv_heads)) for place in draw(places)]
        heads.append(draw(st.sampled_from([None, kept])))
        neurons.append(draw(st.one_of(st.none(), some(layer.ffn))))
    layers = draw(st.one_of(st.just(list(range(len(shape.layers)))), some(len(shape.layers))))
    return KeptUnits.from_json({"layers": layers, "heads": heads, "neurons": neurons})


@st.composite
def models(draw, family: str):
    """A tiny model in evaluation mode; one of copra's own classes where the family is one, cut already."""
    count = draw(st.integers(2, 4))
    torch.manual_seed(draw(st.integers(0, 99)))
    tied = {"tie_word_embeddings": draw(st.booleans())}
    if family.endswith("llama"):
        heads, kv_heads = draw(st.sampled_from(HEADS))
        biases = {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
        config = LlamaConfig(
            hidden_size=24,
            intermediate_size=10,
            num_hidden_layers=count,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=4,
            **SHARED,
            **biases,
            **tied,
        )
        model = LlamaForCausalLM(config)
    else:
        heads, inner = draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.sampled_from([None, 10]))
        config = GPT2Config(
            n_embd=24, n_head=heads, n_inner=inner, n_layer=count, n_positions=20, **SHARED, **tied
        )
        model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    if family.startswith("copra"):
        model = cut_model(model, draw(cuts(shape_of(model.config.to_dict()))))
    return model.eval()


@st.composite
def models_and_cuts(draw, family: str):
    model = draw(models(family))
    return model, draw(cuts(shape_of(model.config.to_dict())))


INPUT_IDS = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(2))
MASKS = {
    "right": torch.arange(9) < torch.tensor([[9], [5], [2]]),
    "left": torch.arange(9) >= torch.tensor([[0], [4], [7]]),
}


@torch.no_grad()
def logits(model, padding: str = "right"):
    mask = MASKS[padding]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return model(INPUT_IDS, attention_mask=mask.long(), position_ids=positions).logits[mask]


@torch.no_grad()
def zeroed(model, cut: KeptUnits):
    """A copy of the whole model in which what goes writes nothing into the residual stream."""
    model = copy.deepcopy(model)
    shape = shape_of(model.config.to_dict())
    for layer, (block, sizes) in enumerate(zip(blocks(model), shape.layers, strict=True)):
        if shape.family == "gpt2":
            outputs = [(part, part.weight) for part in (block.attn.c_proj, block.mlp.c_proj)]
        else:
            outputs = [(part, part.weight.T) for part in (block.self_attn.o_proj, block.mlp.down_proj)]
        kept = (cut.heads[layer], cut.neurons[layer])
        counts, widths = (sizes.query_heads, sizes.ffn), (sizes.head_dim, 1)
        for (part, rows), stays, count, width in zip(outputs, kept, counts, widths, strict=True):
            for unit in set(range(count)) - set(range(count) if stays is None else stays):
                rows[unit * width : (unit + 1) * width] = 0
            if layer not in cut.layers:
                for parameter in part.parameters():
                    parameter.zero_()
    return model


@pytest.mark.parametrize("family", FAMILIES)
@any_cut
@given(data=st.data())
def test_a_cut_computes_what_is_left_of_the_masked_model(family, data):
    model, cut = data.draw(models_and_cuts(family))
    pruned = cut_model(model, cut)
    assert shape_of(pruned.config.to_dict()) == cut.shape(shape_of(model.config.to_dict()))
    for padding in MASKS:
        with masked(model, cut):
            expected = logits(model, padding)
        assert torch.allclose(logits(zeroed(model, cut), padding), expected, atol=1e-5, rtol=0)
        assert torch.allclose(logits(pruned, padding), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@any_cut
@given(data=st.data())
def test_a_cut_comes_back_to_the_bit(family, data, word_tokenizer, tmp_path_factory):
    pruned = cut_model(*data.draw(models_and_cuts(family)))
    folder = tmp_path_factory.mktemp("cut") / "model"
    save_checkpoint(folder, pruned, word_tokenizer, provenance())
    again = load_checkpoint(folder)
    assert type(again.model) is type(pruned)
    state = again.model.state_dict()
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(state.pop(name).cpu(), tensor), name
    assert not state
    # Weights are equal to the bit; on one device so is what they compute.
    assert torch.equal(logits(again.model.cpu()), logits(pruned))
    assert again.manifest.parameters == sum(tensor.numel() for tensor in load_file(folder / WEIGHTS).values())


@pytest.mark.parametrize("family", FAMILIES)
@any_cut
@given(data=st.data())
@torch.no_grad()
def test_a_cut_decodes_with_a_cache_as_without(family, data):
    pruned = cut_model(*data.draw(models_and_cuts(family)))
    cache = DynamicCache(config=pruned.config)
    steps = [
        pruned(INPUT_IDS[:, start:stop], past_key_values=cache, use_cache=True).logits
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9))
    ]
    assert torch.allclose(torch.cat(steps, dim=1), pruned(INPUT_IDS).logits, atol=1e-5, rtol=0)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    uncached = pruned.generate(INPUT_IDS, use_cache=False, **options)
    assert torch.equal(pruned.generate(INPUT_IDS, cache_implementation="static", **options), uncached)


def parameters_of(shape: ModelShape, config) -> int:
    """All weights and biases, by hand."""
    d, count = shape.hidden, len(shape.layers)
    total = sum(sum(layer.values()) for layer in block_parameters(shape))
    total += d * shape.vocabulary * (1 if config.tie_word_embeddings else 2)
    if shape.family == "gpt2":
        total += sum(3 * layer.query_heads * layer.head_dim + layer.ffn + 2 * d for layer in shape.layers)
        return total + 2 * d * (2 * count + 1) + config.n_positions * d
    if config.attention_bias:
        total += sum((layer.query_heads + 2 * layer.kv_heads) * layer.head_dim + d for layer in shape.layers)
    if config.mlp_bias:
        total += sum(2 * layer.ffn + d for layer in shape.layers)
    return total + d * (2 * count + 1)


@pytest.mark.parametrize("family", FAMILIES)
@any_cut
@given(data=st.data())
@torch.no_grad()
def test_a_cut_costs_what_is_counted(family, data):
    model, cut = data.draw(models_and_cuts(family))
    pruned, left = cut_model(model, cut), cut.shape(shape_of(model.config.to_dict()))
    assert pruned.num_parameters() == parameters_of(left, pruned.config)
    with torch.device("meta"):
        empty = type(pruned)(pruned.config).eval()
    with FlopCounterMode(display=False) as counter:
        empty(torch.zeros(1, 9, dtype=torch.long, device="meta"))
    assert sum(FlopCounter(left).of_pass(Pass("prefill", 9, 0, 9)).values()) == counter.get_total_flops()


OUTSIDE = """
import sys
sys.modules["copra"] = None
import torch
from transformers import AutoModelForCausalLM
input_ids = torch.load("inputs.pt", weights_only=True)
found = {}
for kind in ("llama", "gpt2"):
    model = AutoModelForCausalLM.from_pretrained(kind, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        found[kind] = model(input_ids).logits, model.generate(input_ids, **options)
        static = model.generate(input_ids, cache_implementation="static", **options)
    assert torch.equal(static, found[kind][1])
    model.save_pretrained(kind + "-again")
assert not [name for name in sys.modules if name.startswith("copra.")]
torch.save(found, "outputs.pt")
"""


def test_cuts_load_in_a_process_that_has_no_copra(tmp_path, llama, gpt2):
    cuts = {
        "llama": (llama(8, 4), KeptUnits((0, 2), ((0, 1, 6, 7), None, (3,)), (None, None, (1, 2)))),
        "gpt2": (gpt2, KeptUnits((0, 1, 3), ((0, 3), None, None, (2,)), (None, (1, 2), None, None))),
    }
    pruned = {kind: cut_model(*cut) for kind, cut in cuts.items()}
    assert [type(model) for model in pruned.values()] == [CopraLlamaForCausalLM, CopraGPT2LMHeadModel]
    for kind, model in pruned.items():
        model.save_pretrained(tmp_path / kind)
    torch.save(INPUT_IDS, tmp_path / "inputs.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", OUTSIDE], cwd=tmp_path, check=True, env=environment)
    outside = torch.load(tmp_path / "outputs.pt", weights_only=True)
    for kind, model in pruned.items():
        with torch.no_grad():
            assert torch.equal(outside[kind][0], model(INPUT_IDS).logits)
        expected = model.generate(INPUT_IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert torch.equal(outside[kind][1], expected)
        # What is saved there is whole again, code and weights.
        for name in ("per_layer.py", WEIGHTS):
            assert (tmp_path / f"{kind}-again" / name).read_bytes() == (tmp_path / kind / name).read_bytes()
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"{kind}-again")
        assert type(again) is type(model)
