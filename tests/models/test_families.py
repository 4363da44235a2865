"""What holds of the models of every family: sizes, cuts, files, caches, scores, latents and costs."""

import os
import re
import subprocess
import sys

import pytest
import torch
from tiny_families import CASES, capped_attention, make, precise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache
from transformers.models.gemma2 import modeling_gemma2

from copra.cost.flops import FlopCounter, Pass
from copra.cost.parameters import block_parameters
from copra.data.batch import collate
from copra.data.sequences import IGNORED, GenerationSpec, Markers, Sample
from copra.generation.decode import decode
from copra.methods.hidden_states import hidden_states
from copra.methods.loss_functions import cross_entropy
from copra.methods.reasoning_model import ReasoningModel
from copra.models.anatomy import attention_output, blocks, ffn_output, layout_of
from copra.models.checkpoint import register
from copra.models.extra_modules import make_extra_modules
from copra.models.families import FAMILIES, family_of
from copra.models.limits import limits_of
from copra.models.logits import read_logits
from copra.models.networks import embedding_norm
from copra.models.per_layer import CLASSES
from copra.models.shape import shape_of
from copra.pruning.cut import KeptUnits
from copra.pruning.proof import masked
from copra.pruning.scoring.passes import pass_scores
from copra.pruning.surgery import cut_model
from copra.schema.training import Lora
from copra.training.adapters import adapted
from copra.utils.errors import CopraError

NEAR = {"atol": 1e-9, "rtol": 1e-9}

INPUT_IDS = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(9) < torch.tensor([[9], [7], [5]])).long()

# Layers that stay, and of each layer its query heads and neurons (None: all).
HEADS_OF_ALL = {"heads": [[0, 2], [1, 2], [0, 3], [1, 3]]}
CUTS = {
    "layers": {"layers": [0, 2, 3]},
    "groups of all": {"heads": [[2, 3], [0, 1], [0, 1], [2, 3]]},
    "groups of some": {"heads": [None, [2, 3], None, [0, 1]]},
    "heads of all": HEADS_OF_ALL,
    "heads of some": {"heads": [None, [1, 2], None, None]},
    "neurons of all": {"neurons": [[0, 4, 5], [1, 2, 3], [9, 10, 11], [0, 5, 11]]},
    "neurons of some": {"neurons": [None, [1, 2, 3], [0], None]},
    "mixed": {
        "layers": [1, 2, 3],
        "heads": [None, [2, 3], None, [1, 2]],
        "neurons": [None, [7], None, [0, 1]],
    },
}
# Blocks that are least alike: norms around each part, fused projections, and transposed weights with biases.
QUICK = ("gemma2", "phi3", "gpt2")
MARKED = {case: pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES}
LEGAL = [
    pytest.param(case, name, marks=MARKED[case].marks)
    for case in CASES
    for name in CUTS
    if not (case == "olmo2" and name.startswith(("groups", "heads")))
    and not (case.startswith("gpt") and name.startswith("heads"))
]
"""Models with what they can lose: OLMo2 no groups and heads, those without GQA no heads of a group."""


@pytest.fixture(autouse=True)
def precise_attention(monkeypatch):
    """Eager attention, which Gemma 2 is read with, without its detour over float32."""
    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", capped_attention)


@pytest.fixture(params=MARKED.values())
def case(request):
    return request.param


def cut_of(model: nn.Module, name: str) -> KeptUnits:
    """A cut of CUTS; of the mixed one only what an OLMo2 can lose."""
    kept = dict(CUTS[name])
    if name == "mixed" and model.config.model_type == "olmo2":
        del kept["heads"]
    nothing = [None] * 4
    return KeptUnits.from_json({"layers": [0, 1, 2, 3], "heads": nothing, "neurons": nothing, **kept})


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    found = model(INPUT_IDS, attention_mask=MASK, position_ids=positions, use_cache=False).logits
    return found[MASK.bool()]


def test_every_family_has_a_class_for_unequal_layers_and_a_test():
    assert set(FAMILIES) == set(CLASSES) == {model_type for model_type, _ in CASES.values()}


def test_the_shape_is_that_of_the_weights(case):
    model = make(case)
    shape = shape_of(model.config.to_dict())
    assert (shape.hidden, len(shape.layers), shape.family) == (32, 4, model.config.model_type)
    assert shape.vocabulary == model.get_output_embeddings().out_features
    for block, sizes, counted in zip(blocks(model), shape.layers, block_parameters(shape), strict=True):
        widths = []
        for part in (attention_output(block), ffn_output(block)):
            part.register_forward_pre_hook(lambda _, args, seen=widths: seen.append(args[0].shape[-1]))
        model(INPUT_IDS)
        assert widths == [sizes.query_heads * sizes.head_dim, sizes.ffn]
        matrices = {name: p.numel() for name, p in block.named_parameters() if p.dim() == 2}
        assert sum(matrices.values()) == sum(counted.values())
        assert set(matrices) == {f"{name}.weight" for name in layout_of(block).names}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sizes_that_a_config_leaves_out_are_those_of_transformers(model_type):
    family = family_of(model_type)
    # A multiple of the most key/value heads that a family has where its config names none.
    written = {family.width: 64, family.layers: 8, family.query_heads: 32, "vocab_size": 40}
    if not family.ffn_per_width:
        written[family.ffn] = 100
    whole = CONFIG_MAPPING[model_type](**written).to_dict()
    assert shape_of({"model_type": model_type, **written}) == shape_of(whole)
    if "layer_types" in whole:
        windows = {**written, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
        typed = CONFIG_MAPPING[model_type](**windows).to_dict()
        assert shape_of({"model_type": model_type, **windows}) == shape_of(typed)
    tied = CONFIG_MAPPING[model_type]().tie_word_embeddings
    assert family.tied == tied
    del written[family.width]
    with pytest.raises(CopraError, match=f"config.json: {family.width} is None"):
        shape_of({"model_type": model_type, **written})


@pytest.mark.parametrize(("case", "name"), LEGAL)
def test_a_cut_computes_what_the_masked_model_does(case, name):
    model = make(case)
    cut = cut_of(model, name)
    before = logits(model)
    with masked(model, cut):
        expected = logits(model)
    assert not torch.allclose(expected, before, **NEAR), "what goes matters"
    pruned = precise(cut_model(model, cut))
    assert shape_of(pruned.config.to_dict()) == cut.shape(shape_of(model.config.to_dict()))
    assert pruned.config._attn_implementation == model.config._attn_implementation
    assert torch.allclose(logits(pruned), expected, **NEAR)
    model_type = CASES[case][0]
    # The plain classes of these take the head size to be the width over the heads.
    fills = family_of(model_type).heads_fill_width or case == "phi3 with long texts"
    alike = name == "layers" or (name.endswith("of all") and not (fills and "heads" in CUTS[name]))
    assert pruned.config.model_type == (model_type if alike else f"copra_{model_type}")


def test_a_cut_of_a_cut_computes_what_the_masked_model_does(case):
    model = make(case)
    model = precise(cut_model(model, cut_of(model, "mixed")))
    shape = shape_of(model.config.to_dict())
    again = KeptUnits.whole(shape).without(shape, [("layers", 0, 0), ("neurons", 1, 2), ("neurons", 2, 0)])
    with masked(model, again):
        expected = logits(model)
    assert torch.allclose(logits(precise(cut_model(model, again))), expected, **NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers", "mixed"])
def test_a_cut_comes_back_and_its_cache_changes_nothing(case, name, tmp_path):
    model = make(case).float()
    pruned = cut_model(model, cut_of(model, name))
    pruned.save_pretrained(tmp_path)
    register()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert type(again) is type(pruned)
    assert torch.equal(logits(again), logits(pruned))
    precise(again)
    prompts = [INPUT_IDS[0, :7].tolist(), INPUT_IDS[1, :3].tolist(), INPUT_IDS[2, :5].tolist()]
    options = {"stop": -1, "pad": 0, "max_new_tokens": 8, "batch_size": 3, "force_length": True}
    for prefix in ([], INPUT_IDS[1, :6].tolist()):
        found = decode(again, prompts, None, prefix=prefix, **options)
        for prompt, answer in zip(prompts, found, strict=True):
            text = [*prefix, *prompt]
            for _ in range(8):
                text.append(int(again(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
            assert answer.tokens == text[-8:]


@pytest.mark.parametrize("unit", ["layers", "kv_groups", "heads", "neurons"])
def test_what_a_family_cannot_lose_is_refused(case, unit):
    model = make(case)
    shape = shape_of(model.config.to_dict())
    limits = limits_of(model.config.to_dict())
    assert ("kv_groups" in limits) == (case == "olmo2")
    assert ("heads" in limits) == (case == "olmo2" or case.startswith("gpt"))
    units = {"layers": [(unit, 1, 1)], "heads": [(unit, 0, 0), (unit, 0, 2)]}.get(unit, [(unit, 0, 0)])
    cut = KeptUnits.whole(shape).without(shape, units)
    if case == "olmo2" and unit in limits:
        problem = (
            f"olmo2 models cannot lose {unit} (their q/k norm spans all heads). Prune layers or neurons."
        )
        with pytest.raises(CopraError, match=re.escape(problem)):
            cut_model(model, cut)
    elif unit not in limits:
        assert cut_model(model, cut).num_parameters() < model.num_parameters()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers", "mixed"])
def test_flops_are_those_of_the_counter(case, name):
    model = make(case)
    pruned = cut_model(model, cut_of(model, name))
    with torch.device("meta"):
        empty = type(pruned)(pruned.config).eval()
    counter = FlopCounter(shape_of(pruned.config.to_dict()))
    cache = DynamicCache(config=empty.config)
    passes = [("prefill", 3, 0, 1), ("decode", 1, 3, 1), ("latent", 5, 4, 2), ("decode", 1, 9, 1)]
    for one in (Pass(*sizes) for sizes in passes):
        inputs = torch.empty(1, one.new, 32, device="meta")
        with FlopCounterMode(display=False) as found, torch.no_grad():
            states = empty.base_model(
                inputs_embeds=inputs,
                position_ids=torch.arange(one.past, one.past + one.new, device="meta")[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            read_logits(empty, states[:, -one.logits :])
        assert sum(counter.of_pass(one).values()) == found.get_total_flops()


def test_logits_are_those_of_the_model(case):
    model = make(case)
    with torch.no_grad():
        states = model.base_model(INPUT_IDS).last_hidden_state
        assert torch.equal(read_logits(model, states), model(INPUT_IDS).logits)
        batch = collate([Sample("0", row := INPUT_IDS[0].tolist(), [IGNORED, *row[1:]], len(row), 0)], pad=0)
        loss, count = cross_entropy(model, batch, states[:1])
        assert float(loss / count) == pytest.approx(float(model(INPUT_IDS[:1], labels=INPUT_IDS[:1]).loss))


def test_gemma2_caps_the_scores_of_attention_as_transformers_loads_it(monkeypatch, tmp_path):
    """Not even one that was pruned is given an attention that leaves the caps out."""
    pruned = cut_model(model := make("gemma2").float(), cut_of(model, "mixed"))
    pruned.save_pretrained(tmp_path)
    monkeypatch.undo()
    register()
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config._attn_implementation == pruned.config._attn_implementation == "eager"
    capped = logits(again)
    for block in blocks(again):
        block.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(logits(again), capped, atol=1e-3)


@pytest.mark.parametrize("case", ["gemma", "gemma2", "gemma3_text"])
def test_new_tokens_are_scaled_as_the_others_are(case):
    model = make(case)
    model.resize_token_embeddings(43, mean_resizing=False)
    embedding = model.get_input_embeddings()
    assert torch.allclose(embedding(torch.arange(43)), embedding.weight * 32**0.5, rtol=1e-6)
    assert shape_of(model.config.to_dict()).vocabulary == 43


LATENT = 39


def samples() -> list[Sample]:
    """Three rows of 4, 6 and 3 tokens before 3, 1 and no latents, and 3, 2 and 4 after them."""
    tokens = INPUT_IDS.remainder(LATENT).tolist()
    found = []
    for row, (before, latents, after) in enumerate(((4, 3, 3), (6, 1, 2), (3, 0, 4))):
        read = tokens[row][:before] + [LATENT] * latents + tokens[row][before : before + after]
        labels = [IGNORED] * (before + latents) + read[before + latents :]
        found.append(Sample(str(row), read, labels, before, latents))
    return found


def plain_states(model: nn.Module, sample: Sample, scale: float | None = None) -> torch.Tensor:
    """The final-norm states [N, d] of one row, each latent from a pass of its own over what is before it."""
    inputs = model.get_input_embeddings()(torch.tensor([sample.tokens]))
    for place in range(sample.first_latent, sample.first_latent + sample.n_latents):
        state = model.base_model(inputs_embeds=inputs[:, :place], use_cache=False).last_hidden_state[:, -1]
        if scale is not None:
            state = state * scale / state.norm()
        inputs = torch.cat([inputs[:, :place], state[:, None], inputs[:, place + 1 :]], dim=1)
    return model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("way", ["raw", "scaled"])
@torch.no_grad()
def test_latents_equal_a_loop_without_cache(case, way):
    model, chosen = make(case), samples()
    rows = model.get_input_embeddings()(torch.arange(40))
    if model.config.model_type != "gpt2":
        # What enters the first layer is what the norm is taken of; GPT-2 adds positions to it.
        entered = []
        hook = blocks(model)[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        model(torch.arange(40)[None], use_cache=False)
        hook.remove()
        assert torch.equal(entered[0][0], rows)
    norm = rows.norm(dim=-1).mean()
    assert float(embedding_norm(model)) == pytest.approx(float(norm), rel=1e-6)
    batch = collate(chosen, pad=0)
    found = hidden_states(model, batch, "hidden", way)[batch.mask.bool()]
    expected = [plain_states(model, sample, None if way == "raw" else float(norm)) for sample in chosen]
    # Norms for scaling are taken in float32.
    near = NEAR if way == "raw" else {"atol": 1e-4, "rtol": 1e-4}
    assert torch.allclose(found, torch.cat(expected), **near)


@torch.no_grad()
def test_iterated_latents_equal_the_loop_beyond_the_window_too(case):
    """As many Jacobi iterations as latents are the chain, in training and in answering."""
    model, chosen = make(case), samples()[:2]
    batch = collate(chosen, pad=0)
    found = hidden_states(model, batch, "hidden", iterations=3)[batch.mask.bool()]
    expected = torch.cat([plain_states(model, sample) for sample in chosen])
    assert torch.allclose(found, expected, **NEAR)
    prompts = [INPUT_IDS[0, :7].tolist(), INPUT_IDS[1, :5].tolist()]
    options = {"stop": -1, "pad": 0, "max_new_tokens": 6, "batch_size": 2, "force_length": True}
    answers = [
        decode(model, prompts, GenerationSpec((), 3, "hidden", LATENT, (), iterations=iterations), **options)
        for iterations in (0, 3)
    ]
    assert answers[0] == answers[1]


def slow_unit_scores(model: nn.Module, count) -> dict[str, dict[tuple[int, int], float]]:
    """Sums of `count` over the weights that each head and neuron is made of."""
    found = {"head": {}, "neuron": {}}
    shapes = shape_of(model.config.to_dict()).layers
    for layer, (block, sizes) in enumerate(zip(blocks(model), shapes, strict=True)):
        outputs = attention_output(block), ffn_output(block)
        matrices = [m for m in block.modules() if getattr(m, "weight", None) is not None]
        before = [m for m in matrices if m.weight.dim() == 2 and m not in outputs]
        for kind, output, units in zip(found, outputs, (sizes.query_heads, sizes.ffn), strict=True):
            totals = channel_sums(model, output, False, count).unflatten(0, (units, -1)).sum(1)
            for module in list(before):
                touched = touches(model, module, output, units)
                if touched.any():
                    rows = channel_sums(model, module, True, count)
                    totals = totals + (rows / touched.sum(0) * touched).sum(1)
                    # What makes heads also changes the neurons above them.
                    before.remove(module)
            found[kind] |= {(layer, unit): total for unit, total in enumerate(totals.tolist())}
    return found


def channel_sums(model: nn.Module, module: nn.Module, outputs: bool, count) -> torch.Tensor:
    """Sums over the weights of each output channel with its bias, or of each input channel."""
    values = count(module.weight).detach()
    sums = values.sum(0 if outputs == (model.config.model_type == "gpt2") else 1)
    return sums + count(module.bias).detach() if outputs and module.bias is not None else sums


def touches(model: nn.Module, module: nn.Module, output: nn.Module, units: int) -> torch.Tensor:
    """Which of the units in front of an output projection change with which output channel of a module,
    [U, out]: a channel belongs to the heads or neurons that have a gradient for it, in equal shares."""
    seen = []
    hook = output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(INPUT_IDS[:1, :4])
    hook.remove()
    random = torch.randn(seen[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = []
    for unit in (seen[0] * random).unflatten(-1, (units, -1)).unbind(-2):
        (gradient,) = torch.autograd.grad(
            unit.sum(), module.weight, retain_graph=True, materialize_grads=True
        )
        found.append(gradient.abs().sum(0 if model.config.model_type == "gpt2" else 1) > 0)
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "count"), [("taylor", lambda w: (w * w.grad).abs()), ("magnitude", lambda w: w.abs())]
)
def test_scores_of_weights_equal_a_search_for_what_each_unit_is_made_of(case, metric, count):
    model, chosen = make(case), samples()
    decoding = GenerationSpec((), 3, "hidden", LATENT, ())
    batches = [collate(chosen[:2], pad=0), collate(chosen[2:], pad=0)]
    table = pass_scores(model, nn.ModuleDict(), batches, decoding)
    assert {row["metric"] for row in table} >= {"cosine", "angular", "gradient", "activation", "contribution"}
    assert all(torch.tensor(row["score"]).isfinite() for row in table)
    losses = []
    for sample in chosen:
        states = plain_states(model, sample)
        labels = torch.tensor(sample.labels)
        wanted = labels[1:] != IGNORED
        read = read_logits(model, states[:-1][wanted])
        losses.append(nn.functional.cross_entropy(read, labels[1:][wanted]))
    (sum(losses) / len(losses)).backward()
    for unit, expected in slow_unit_scores(model, count).items():
        if unit == "head" and case == "olmo2":
            continue  # through the norm of all heads together each row changes every head
        scores = {
            (row["layer"], row["index"]): row["score"]
            for row in table
            if (row["unit"], row["metric"]) == (unit, metric)
        }
        assert scores == pytest.approx(expected, rel=1e-7), unit


def test_added_modules_run_and_learn(case):
    """A step decoder with more layers than the model, and a thought emulator with its mind reader."""
    model = make(case)
    model = precise(cut_model(model, cut_of(model, "mixed")))
    parts = make_extra_modules(model, {"step_decoder": {"layers": 5}, "emulator": {}, "mind_reader": {}})
    inputs = model.get_input_embeddings()(INPUT_IDS)
    states = parts["step_decoder"](inputs, MASK)
    assert states.shape == (3, 9, 32)
    positions, columns = (MASK.cumsum(1) - 1).clamp(min=0), MASK.sum(1) - 1
    thoughts = parts["mind_reader"](parts["emulator"](INPUT_IDS, MASK, positions, columns))
    assert thoughts.shape == (3, 3, 32)
    (states.square().sum() + thoughts.square().sum()).backward()
    bottom = blocks(parts["step_decoder"].body)[0], blocks(parts["emulator"].body)[0]
    assert len(blocks(parts["step_decoder"].body)) == 5
    for block in bottom:
        assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters() if parameter.dim() == 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_are_merged_without_a_change(case):
    model = make(case)
    with adapted(ReasoningModel(model), Lora(rank=2, alpha=4.0), (), Markers(37, 38, 39)), torch.no_grad():
        parts = [part for part in model.modules() if hasattr(part, "lora_B")]
        for part in parts:
            part.lora_B["default"].weight.normal_(std=0.1)
        expected = logits(model)
    assert len(parts) == 4 * len(layout_of(blocks(model)[0]).names)
    assert torch.allclose(logits(model), expected, atol=1e-4)


OUTSIDE = """
import sys
sys.modules["copra"] = None
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    torch.save(model(torch.arange(12)[None]).logits, f"{folder}/logits.pt")
"""


@pytest.mark.slow
def test_unequal_layers_load_where_there_is_no_copra(tmp_path):
    expected = {}
    for case in CASES:
        model = make(case).float()
        pruned = cut_model(model, cut_of(model, "mixed"))
        pruned.save_pretrained(tmp_path / case)
        expected[case] = pruned(torch.arange(12)[None]).logits
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", OUTSIDE, *CASES], cwd=tmp_path, check=True, env=environment)
    for case in CASES:
        assert torch.equal(torch.load(tmp_path / case / "logits.pt"), expected[case]), case


def test_adapters_are_counted_as_they_are(case):
    """A token costs 2 FLOPs for each weight of the adapters, q, k and v in one matrix or each in its own."""
    model, rank = make(case), 3
    counter = FlopCounter(shape_of(model.config.to_dict()))
    with adapted(ReasoningModel(model), Lora(rank=rank), (), Markers(37, 38, 39)):
        weights = [weight for name, weight in model.named_parameters() if "lora_" in name]
        assert counter.adapter * rank == 2 * sum(weight.numel() for weight in weights) > 0
