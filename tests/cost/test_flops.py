"""The FLOPs formula against PyTorch's own counter, on the meta device and to the last FLOP."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from copra.cost.flops import FLOP_GROUPS, PHASES, FlopCounter, Pass, passes
from copra.data.batch import collate
from copra.data.sequences import GenerationSpec, Markers, TokenRow, lay_out
from copra.generation.decode import decode
from copra.generation.session import DecodingSession, read_prefix
from copra.methods.hidden_states import hidden_states
from copra.methods.loss_functions import cross_entropy
from copra.models.extra_modules import make_extra_modules
from copra.models.looping import loop_layers
from copra.models.per_layer import CopraLlamaConfig, CopraLlamaForCausalLM
from copra.models.shape import shape_of
from copra.pruning.cut import KeptUnits
from copra.pruning.surgery import cut_model
from copra.schema.loop import Loop
from copra.schema.shape import LayerShape, ModelShape
from helpers.decodings import DECODINGS

# Ways to answer whose passes differ.
WAYS = ("none", "hidden", "one hidden", "bare hidden", "embedding", "zero latents", "projected", "jacobi 1")
WAYS += ("jacobi 2", "jacobi projected", "bare jacobi", "emulated")
QUICK = ("none", "hidden", "jacobi projected", "emulated")
WITH_PARTS = ("projected", "jacobi projected", "emulated")


def pruned(model, *units):
    """What is left of a model without these units."""
    shape = shape_of(model.config.to_dict())
    return cut_model(model, KeptUnits.whole(shape).without(shape, units))


def models(make_model):
    """Models of all sorts, by name."""
    llama = make_model("llama")
    return {
        **{kind: make_model(kind) for kind in ("llama", "gpt2", "copra_llama")},
        "wide gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=24, n_layer=1, n_head=3, n_inner=100)),
        "without layer": pruned(llama, ("layers", 1, 1)),
        "gpt2 without layer": pruned(make_model("gpt2"), ("layers", 0, 0)),
        "without groups": pruned(llama, *(("kv_groups", layer, 0) for layer in range(3))),
        "with unequal groups": pruned(llama, ("kv_groups", 0, 1), ("kv_groups", 2, 0)),
        "without groups of unequal layers": pruned(
            make_model("copra_llama"), ("kv_groups", 1, 1), ("kv_groups", 2, 0)
        ),
        "without heads and neurons": pruned(
            llama, ("heads", 1, 0), ("heads", 1, 3), ("neurons", 0, 5), ("neurons", 1, 7)
        ),
        "gpt2 without heads and neurons": pruned(make_model("gpt2"), ("heads", 1, 2), ("neurons", 0, 5)),
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
    "without heads and neurons",
    "gpt2 without heads and neurons",
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
        [Pass("prefill", 17, 0, 17), Pass("decode", 1, 17, 1)],
        [Pass("prefill", 9, 0, 0), Pass("latent", 4, 9, 2), Pass("decode", 1, 13, 1)],
    ],
)
def test_passes_equal_the_counter(meta_models, name, series):
    model = meta_models[name]
    flops = FlopCounter(shape_of(model.config.to_dict()))
    cache = DynamicCache(config=model.config)
    for one in series:
        assert sum(flops.of_pass(one).values()) == run(model, one, cache)


@torch.no_grad()
def answer_once(model, decoding, prompt: int, generated: int, cached: int) -> int:
    """Really answer with a model and parts that have no weights, and count the FLOPs."""
    with torch.device("meta"):
        parts = make_extra_modules(model, {name: {} for name in (decoding.extra_modules if decoding else ())})

    def without_mask(_, arguments, settings):
        # A mask would be looked into, and one row needs none.
        return arguments, {**settings, "attention_mask": None, "use_cache": True}

    bodies = [model.base_model, *([parts["emulator"].body] if "emulator" in parts else [])]
    handles = [body.register_forward_pre_hook(without_mask, with_kwargs=True) for body in bodies]
    tokens = list(range(1, prompt + 1))
    shared = read_prefix(model, tokens[:cached]) if cached else None
    with FlopCounterMode(display=False) as counter:
        answering = DecodingSession(model, [tokens[cached:]], decoding, 0, parts, shared)
        answering.prefill()
        for _ in range(generated - 1):
            answering.step(torch.zeros(1, dtype=torch.long, device="meta"))
    for handle in handles:
        handle.remove()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way", "cached"),
    [pytest.param("copra_llama", way, 0, marks=[] if way in QUICK else pytest.mark.slow) for way in WAYS]
    + [("llama", "jacobi 2", 5)]
    + [pytest.param("gpt2", way, 0, marks=pytest.mark.slow) for way in WITH_PARTS],
)
def test_answers_equal_the_counter(meta_models, name, way, cached):
    model, decoding = meta_models[name], DECODINGS[way]
    flops = FlopCounter(shape_of(model.config.to_dict()))
    counted = flops.of_answer(decoding, 13, 4, cached)
    assert counted.total == answer_once(model, decoding, 13, 4, cached)
    # The passes of the model alone, by phase; what is counted beyond them is the method's.
    cache = DynamicCache(config=model.config)
    if cached:
        run(model, Pass("prefill", cached, 0, 0), cache)
    series = list(passes(decoding, 13, 4, cached))
    by_phase, by_method = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    for place, one in enumerate(series):
        # The emulator has a cache of its own, and an iteration takes back what the one before has read.
        reader = DynamicCache(config=model.config) if way == "emulated" and not place else cache
        reader.crop(one.past - reader.get_seq_length())
        by_phase[one.phase] += run(model, one, reader)
    for phase in PHASES:
        by_method[phase] = counted.by[phase, "method"]
        assert counted.of(phase) == by_phase[phase] + by_method[phase]
    assert counted.total == sum(counted.of(part) for part in FLOP_GROUPS) == sum(map(counted.of, PHASES))
    assert counted.depth == len(series)
    assert (counted.of("method") > 0) == (way in WITH_PARTS)
    assert by_method == {**dict.fromkeys(PHASES, 0), "latent": counted.of("method")}


@pytest.mark.parametrize("name", ["gpt2", "copra_llama"])
@pytest.mark.parametrize("loop", [Loop(times=2), Loop(layers=(1, 2), times=3)], ids=["all", "block"])
@pytest.mark.parametrize("way", ["no thought", "hidden"])
def test_answers_with_a_loop_equal_the_counter(make_model, name, loop, way):
    """Every visit of a layer counts, and the depth in passes through three layers."""
    with torch.device("meta"):
        model = type(make_model(name))(make_model(name).config).eval()
    shape, decoding = shape_of(model.config.to_dict()), replace(DECODINGS[way], loop=loop)
    loop_layers(model, loop)
    counted = FlopCounter(shape.looped(loop)).of_answer(decoding, 13, 4)
    assert counted.total == answer_once(model, decoding, 13, 4, 0)
    visits = {2: 6, 3: 7}[loop.times]
    assert counted.depth == pytest.approx(len(list(passes(decoding, 13, 4))) * visits / 3)
    plain = FlopCounter(shape).of_answer(DECODINGS[way], 13, 4)
    assert counted.of("head") == plain.of("head")
    if loop.times == 2:
        assert counted.of("attention") + counted.of("ffn") == 2 * (plain.of("attention") + plain.of("ffn"))


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


@pytest.mark.parametrize("any_model", ["copra_llama"], indirect=True)
@pytest.mark.parametrize(("name", "cached"), [*((name, 0) for name in WAYS), ("none", 4), ("jacobi 2", 4)])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_decoding_runs_exactly_these_passes(any_model, name, cached, length):
    decoding, tokens = DECODINGS[name], list(range(1, 10))
    parts = make_extra_modules(any_model, {"projection": {}, "mind_reader": {}, "emulator": {}})
    seen: list[tuple[int, int]] = []
    heads: list[int] = []
    fed: list[tuple[int, int]] = []

    def look(_, args, kwargs):
        cache = kwargs.get("past_key_values")
        read = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        seen.append((read.shape[1], cache.get_seq_length() if cache else 0))

    for body in (any_model.base_model, parts["emulator"].body):
        body.register_forward_pre_hook(look, with_kwargs=True)
    any_model.get_output_embeddings().register_forward_hook(
        lambda _, args, __: heads.append((len(seen) - 1, args[0].shape[:-1].numel()))
    )
    # What is projected is fed to the pass that comes next.
    parts["projection"].register_forward_hook(
        lambda _, args, __: fed.append((len(seen), args[0].shape[:-1].numel()))
    )
    options = {"pad": 0, "max_new_tokens": 7, "batch_size": 1}
    options |= {"extra_modules": parts, "prefix": tokens[:cached]}
    forced = decode(any_model, [tokens[cached:]], decoding, stop=0, force_length=True, **options)[0].tokens
    stop = forced[length - 1]
    length = forced.index(stop) + 1
    for record in (seen, heads, fed):
        record.clear()
    answer = decode(any_model, [tokens[cached:]], decoding, stop=stop, **options)[0]
    assert len(answer.tokens) == length
    series = list(passes(decoding, len(tokens), length, cached))
    read_before = [(cached, 0)] if cached else []
    assert seen == read_before + [(one.new, one.past) for one in series]
    first = len(read_before)
    assert heads == [(number, one.logits) for number, one in enumerate(series, first) if one.logits]
    if decoding is not None and decoding.latent_input == "projected":
        assert fed == [(number, one.fed) for number, one in enumerate(series, first) if one.fed]


def test_worked_answer():
    """Two latents after 5 tokens and a marker, an end marker, three generated tokens."""
    decoding = GenerationSpec((1,), 2, "hidden", 2, (3,))
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


def test_worked_jacobi_answer():
    """Four latents after 5 tokens and a marker, 3 of those tokens in the cache, two iterations."""
    decoding = GenerationSpec((1,), 4, "hidden", 2, (3,), "projected", iterations=2)
    assert list(passes(decoding, 5, 2, cached=3)) == [
        Pass("prefill", 3 + 4, 3, 0),
        Pass("latent", 4, 6, 0, 4),
        Pass("latent", 4 + 1, 6, 1, 4),
        Pass("decode", 1, 11, 1),
    ]
    shape = ModelShape("llama", 4, 10, 3, (LayerShape(2, 1, 3, 5),))
    answer = FlopCounter(shape).of_answer(decoding, 5, 2, 3)
    # Two matrices of 4 x 4 for each latent that is fed.
    assert answer.by["latent", "method"] == (4 + 4) * 2 * 2 * 4 * 4
    assert answer.by["prefill", "attention"] == 7 * 144 + 7 * 10 * 24
    assert answer.by["latent", "attention"] == 9 * 144 + (4 * 10 + 5 * 11) * 24
    assert answer.depth == 4


def test_worked_emulated_answer():
    """Two layers of width 4 read a prompt of 5 tokens twice."""
    decoding = GenerationSpec((), 0, "hidden", 2, (), emulated=True)
    assert list(passes(decoding, 5, 2)) == [
        Pass("latent", 5, 0, 0),
        Pass("prefill", 5, 0, 1),
        Pass("decode", 1, 5, 1),
    ]
    shape = ModelShape("llama", 4, 10, 3, (LayerShape(2, 1, 3, 5),) * 2)
    answer = FlopCounter(shape).of_answer(decoding, 5, 2)
    # A layer: the emulator's network 8-16-4, the cell's two matrices 4-16, key 4-4, output 8-4, and the
    # student's network 4-16-4. The second one has a query 4-4 too, one score and one value of width 4.
    layer = 2 * (8 * 16 + 16 * 4 + 2 * 4 * 16 + 4 * 4 + 8 * 4 + 4 * 16 + 16 * 4)
    assert answer.of("method") == 2 * layer + 2 * (4 * 4 + 4 + 4)
    assert answer.by["latent", "attention"] == answer.by["prefill", "attention"]
    assert answer.by["latent", "head"] == 0


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
