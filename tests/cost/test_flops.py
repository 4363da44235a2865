"""The FLOPs formula against PyTorch's own counter, on the meta device and to the last FLOP."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from copra.cost.flops import PARTS, PHASES, FlopCounter, Pass, passes
from copra.cost.parameters import block_parameters, kv_cache_bytes_per_token
from copra.inference.decode import decode
from copra.models.copra_llama import CopraLlamaConfig, CopraLlamaForCausalLM
from copra.models.shape import LayerShape, ModelShape, shape_of
from copra.pruning.surgery import prune
from copra.reasoning.forward import collate, cross_entropy, hidden_states
from copra.reasoning.layout import Decoding, Markers, TokenRow, lay_out

HIDDEN = Decoding(before=(47,), latents=3, thought="hidden", latent_token=48, after=(49,))
DECODINGS = {
    "none": None,
    "hidden": HIDDEN,
    "one hidden": Decoding((47,), 1, "hidden", 48, (49,)),
    "bare hidden": Decoding((), 2, "hidden", 48, ()),
    "embedding": Decoding((47,), 3, "embedding", 48, (49,)),
    "zero latents": Decoding((47,), 0, "hidden", 48, (49,)),
}


def pruned(model, unit: str, kept):
    """What is left of a model with only these layers, or only these KV groups of each layer."""
    plan = {"unit": unit, "kept": {unit: kept}, "shape_before": shape_of(model.config.to_dict()).to_json()}
    return prune(model, plan)


def models(make_model):
    """Models of all sorts, by name."""
    llama = make_model("llama")
    return {
        **{kind: make_model(kind) for kind in ("llama", "gpt2", "copra_llama")},
        "wide gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=24, n_layer=1, n_head=3, n_inner=100)),
        "without layer": pruned(llama, "layers", [0, 2]),
        "gpt2 without layer": pruned(make_model("gpt2"), "layers", [1, 2]),
        "without groups": pruned(llama, "kv_groups", [[1]] * 3),
        "with unequal groups": pruned(llama, "kv_groups", [[0], [0, 1], [1]]),
        "without groups of unequal layers": pruned(
            make_model("copra_llama"), "kv_groups", [[0], [0, 2], [1]]
        ),
    }


NAMES = (
    "llama",
    "gpt2",
    "copra_llama",
    "wide gpt2",
    "without layer",
    "gpt2 without layer",
    "without groups",
    "with unequal groups",
    "without groups of unequal layers",
)


@pytest.fixture(scope="module")
def meta_models(make_model):
    """The models without weights."""
    with_weights = models(make_model)
    assert tuple(with_weights) == NAMES
    with torch.device("meta"):
        return {name: type(model)(model.config).eval() for name, model in with_weights.items()}


@torch.no_grad()
def run(model, one: Pass, cache: DynamicCache) -> int:
    """Really run one pass over the cache, and count its FLOPs."""
    embeddings = torch.empty(1, one.new, model.get_input_embeddings().embedding_dim, device="meta")
    positions = torch.arange(one.past, one.past + one.new, device="meta")[None]
    assert cache.get_seq_length() == one.past
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        if one.logits:
            model.get_output_embeddings()(hidden[:, -one.logits :])
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "series",
    [
        [Pass("prefill", 1, 0, 1)],
        [Pass("prefill", 17, 0, 17)],
        [Pass("prefill", 17, 0, 0), Pass("decode", 1, 17, 1), Pass("decode", 1, 18, 1)],
        [Pass("prefill", 9, 0, 1), Pass("latent", 4, 9, 2)],
    ],
)
def test_passes_equal_the_counter(meta_models, name, series):
    model = meta_models[name]
    flops = FlopCounter(shape_of(model.config.to_dict()))
    cache = DynamicCache(config=model.config)
    for one in series:
        assert sum(flops.of_pass(one).values()) == run(model, one, cache)


@pytest.mark.parametrize(
    ("name", "way"), [("llama", way) for way in DECODINGS] + [(name, "hidden") for name in NAMES[1:]]
)
def test_answers_equal_the_counter(meta_models, name, way):
    model, decoding = meta_models[name], DECODINGS[way]
    counted = FlopCounter(shape_of(model.config.to_dict())).of_answer(decoding, prompt=13, generated=4)
    cache = DynamicCache(config=model.config)
    series = list(passes(decoding, 13, 4))
    by_phase = dict.fromkeys(PHASES, 0)
    for one in series:
        by_phase[one.phase] += run(model, one, cache)
    assert {phase: counted.of(phase) for phase in PHASES} == by_phase
    assert counted.total == sum(by_phase.values()) == sum(counted.of(part) for part in PARTS)
    assert counted.depth == len(series)


def test_parts_equal_the_counter(meta_models):
    """Attention, FFN and LM head apart, by the names that the counter gives them."""
    model = meta_models["copra_llama"]
    one = Pass("prefill", 11, 0, 11)
    with FlopCounterMode(display=False, depth=8) as counter, torch.no_grad():
        model(torch.zeros(1, 11, dtype=torch.long, device="meta"))
    by_name = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    parts = {"attention": ".self_attn", "ffn": ".mlp", "head": ".lm_head"}
    found = {part: sum(f for name, f in by_name.items() if name.endswith(end)) for part, end in parts.items()}
    assert FlopCounter(shape_of(model.config.to_dict())).of_pass(one) == found


@pytest.mark.parametrize("name", DECODINGS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_decoding_runs_exactly_these_passes(any_model, name, length):
    decoding, prompt = DECODINGS[name], list(range(1, 10))
    seen: list[tuple[int, int]] = []
    heads: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(
            (kwargs["inputs_embeds"].shape[1], kwargs["past_key_values"].get_seq_length())
        ),
        with_kwargs=True,
    )
    any_model.get_output_embeddings().register_forward_hook(
        lambda _, args, __: heads.append((len(seen) - 1, args[0].shape[:-1].numel()))
    )
    options = {"pad": 0, "max_new_tokens": 7, "batch_size": 1}
    forced = decode(any_model, [prompt], decoding, stop=0, force_length=True, **options)[0].tokens
    stop = forced[length - 1]
    length = forced.index(stop) + 1
    seen.clear()
    heads.clear()
    answer = decode(any_model, [prompt], decoding, stop=stop, **options)[0]
    assert len(answer.tokens) == length
    series = list(passes(decoding, len(prompt), length))
    assert seen == [(one.new, one.past) for one in series]
    assert heads == [(number, one.logits) for number, one in enumerate(series) if one.logits]


def test_worked_answer():
    """Two latents after 5 tokens and a marker, an end marker, three generated tokens."""
    decoding = Decoding((1,), 2, "hidden", 2, (3,))
    assert list(passes(decoding, 5, 3)) == [
        Pass("prefill", 6, 0, 0),
        Pass("latent", 1, 6, 0, 1),
        Pass("latent", 2, 7, 1, 1),
        Pass("decode", 1, 9, 1),
        Pass("decode", 1, 10, 1),
    ]
    # d = 4, V = 10, one layer of H = 2, K = 1, D = 3, I = 5. A token's projections: 2*4*3*(2*2+2*1) = 144.
    # A score and its share of the values: 4*2*3 = 24. FFN: 2*3*4*5 = 120. LM head: 2*4*10 = 80.
    shape = ModelShape("llama", 4, 10, 3, (LayerShape(2, 1, 3, 5),))
    answer = FlopCounter(shape).of_answer(decoding, 5, 3)
    assert answer.by == {
        ("prefill", "attention"): 6 * 144 + 6 * 6 * 24,
        ("prefill", "ffn"): 6 * 120,
        ("prefill", "head"): 0,
        ("latent", "attention"): 3 * 144 + (1 * 7 + 2 * 9) * 24,
        ("latent", "ffn"): 3 * 120,
        ("latent", "head"): 80,
        ("decode", "attention"): 2 * 144 + (10 + 11) * 24,
        ("decode", "ffn"): 2 * 120,
        ("decode", "head"): 160,
        **{(phase, "method"): 0 for phase in PHASES},
    }
    assert answer.depth == 5


@pytest.mark.parametrize("name", NAMES)
def test_training_is_three_times_the_forward_pass(meta_models, name):
    """A row of 14 tokens, 4 of them supervised."""
    model = meta_models[name]
    counter = FlopCounter(shape_of(model.config.to_dict()))
    forward = run(model, Pass("prefill", 14, 0, 4), DynamicCache(config=model.config))
    assert counter.of_training(tokens=14, context=14 * 14, supervised=4) == 3 * forward


def test_training_with_latents_costs_no_more_than_in_one_pass(make_model):
    """The passes over a part of the row score less than the formula says, and nothing else differs."""
    model = make_model("llama")
    row = TokenRow("row", list(range(1, 9)), [[3, 4, 5], [6, 7]], [8, 9])
    sample = lay_out(row, skip=1, latents=3, markers=Markers(47, 48, 49))
    n, first = len(sample.tokens), sample.first_latent
    assert (n, first) == (17, 9)
    seen: list[tuple[int, int]] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(
            (kwargs["inputs_embeds"].shape[1], kwargs["past_key_values"].get_seq_length())
        ),
        with_kwargs=True,
    )
    batch = collate([sample], 0)
    cross_entropy(model, batch, hidden_states(model, batch, "hidden"))
    counter = FlopCounter(shape_of(model.config.to_dict()))
    forward = sum(sum(counter.of_pass(Pass("latent", new, past, 0)).values()) for new, past in seen) + sum(
        counter.of_pass(Pass("latent", 0, 0, 4)).values()
    )
    counted = counter.of_training(n, n * n, supervised=4)
    unscored = n * n - sum(new * (past + new) for new, past in seen)
    assert counted == 3 * (forward + unscored * counter.scores)
    assert unscored == 9 * 8 + 7 + 6


# Llama 3.2 1B, by the config that Meta published.
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}


def share_saved(layers) -> float:
    """The part of a token's FLOPs that a 1B Llama with these layers saves, in percent."""
    shape = shape_of(LlamaConfig(**LLAMA_1B).to_dict())
    dense, left = (
        sum(FlopCounter(s).of_pass(Pass("decode", 1, 0, 1)).values())
        for s in (shape, shape.with_layers(layers))
    )
    return 100 * (1 - left / dense)


def test_llama_1b_has_the_published_sizes():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_1B))
    shape = shape_of(model.config.to_dict())
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400
    assert block_parameters(shape) == [{"attention": 10_485_760, "ffn": 50_331_648}] * 16
    for block, counted in zip(model.model.layers, block_parameters(shape), strict=True):
        assert sum(p.numel() for p in block.self_attn.parameters()) == counted["attention"]
        assert sum(p.numel() for p in block.mlp.parameters()) == counted["ffn"]
    # 8 KV heads of 64 for keys and for values, 16 layers, 2 bytes.
    assert kv_cache_bytes_per_token(shape, 2) == 8 * 64 * 2 * 16 * 2 == 32768


def test_llama_1b_has_the_published_shares():
    layer = LayerShape(32, 8, 64, 8192)
    assert share_saved((layer,) * 15) == pytest.approx(4.9, abs=0.05)
    assert share_saved((layer,) * 12) == pytest.approx(19.7, abs=0.05)
    assert share_saved((LayerShape(16, 4, 64, 8192),) * 16) == pytest.approx(6.8, abs=0.05)
    assert share_saved((LayerShape(28, 7, 64, 8192), *(layer,) * 15)) == pytest.approx(0.106, abs=0.001)
    assert share_saved((LayerShape(32, 8, 64, 6144),) * 16) == pytest.approx(16.3, abs=0.05)
    counter = FlopCounter(shape_of(LlamaConfig(**LLAMA_1B).to_dict()))
    total = counter.projections + counter.ffn + counter.head
    assert 100 * counter.projections / total == pytest.approx(13.6, abs=0.05)
    assert 100 * counter.head / total == pytest.approx(21.3, abs=0.05)


def test_block_parameters_are_those_of_the_models(make_model):
    """Without the biases of GPT-2."""
    for kind, attention, ffn in (
        ("gpt2", "attn", "mlp"),
        ("copra_llama", "self_attn", "mlp"),
    ):
        model = make_model(kind)
        blocks = model.base_model.h if kind == "gpt2" else model.base_model.layers
        found = [
            {
                "attention": sum(
                    p.numel() for p in block.get_submodule(attention).parameters() if p.dim() == 2
                ),
                "ffn": sum(p.numel() for p in block.get_submodule(ffn).parameters() if p.dim() == 2),
            }
            for block in blocks
        ]
        assert block_parameters(shape_of(model.config.to_dict())) == found


def test_cache_bytes_are_those_of_a_cache(any_model):
    cache = DynamicCache(config=any_model.config)
    any_model(torch.arange(1, 8)[None], past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = shape_of(any_model.config.to_dict())
    assert kv_cache_bytes_per_token(shape, any_model.dtype.itemsize) * 7 == held


def test_unequal_layers_are_counted_each_by_itself():
    config = CopraLlamaConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=6,
        layer_overrides=[{}, {"num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 9}],
    )
    counter = FlopCounter(shape_of(config.to_dict()))
    assert counter.projections == 2 * 8 * 4 * (2 * 2 + 2 * 1) + 2 * 8 * 4 * (2 * 3 + 2 * 3)
    assert counter.scores == 4 * 4 * (2 + 3)
    assert counter.ffn == 2 * 3 * 8 * (6 + 9)
    assert isinstance(CopraLlamaForCausalLM(config), CopraLlamaForCausalLM)
