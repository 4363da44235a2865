import pytest
import torch
from plain import by_unit, loss, sizes_of

from copra.models.anatomy import blocks
from copra.pruning.scoring.passes import pass_scores


def scores_of(model, calibration):
    return pass_scores(model, torch.nn.ModuleDict(), calibration.batches(2), calibration.decoding)


def backward(model, calibration):
    """Leave in the model the gradients of the mean loss over all examples."""
    model.eval().zero_grad()
    losses = [loss(model, sample, calibration.decoding) for sample in calibration.samples]
    (sum(losses) / len(losses)).backward()


def counted(model, layer, count):
    """What each weight of a layer counts, by name, matrices as [out, in]."""
    transposed = "gpt2" in model.config.model_type
    found = {}
    for name, parameter in blocks(model)[layer].named_parameters():
        value = count(parameter).detach()
        found[name] = value.T if transposed and value.dim() == 2 else value
    return found


def span(index, width, first=0):
    """The channels of a head."""
    return list(range(first + index * width, first + (index + 1) * width))


def rows(values, name, channels):
    """The sum over rows of a matrix, with their biases where there are any."""
    bias = values.get(f"{name}.bias")
    return values[f"{name}.weight"][channels].sum() + (0 if bias is None else bias[channels].sum())


def columns(values, name, channels):
    return values[f"{name}.weight"][:, channels].sum()


def of_attention(values, sizes, heads, group):
    """The sums over what belongs to some heads alone, and over what a group shares."""
    own = shared = 0
    if "attn.c_attn.weight" in values:
        names, output = ("attn.c_attn",) * 3, "attn.c_proj"
        firsts = [part * sizes.query_heads * sizes.head_dim for part in range(3)]
    else:
        names, output = [f"self_attn.{letter}_proj" for letter in "qkv"], "self_attn.o_proj"
        firsts = [0, 0, 0]
    for head in heads:
        own += rows(values, names[0], span(head, sizes.head_dim, firsts[0]))
        own += columns(values, output, span(head, sizes.head_dim))
    for name, first in zip(names[1:], firsts[1:], strict=True):
        shared += rows(values, name, span(group, sizes.head_dim, first))
    return own, shared


def of_neuron(values, neuron):
    gpt2 = "mlp.c_fc.weight" in values
    before, after = (["c_fc"], "c_proj") if gpt2 else (["gate_proj", "up_proj"], "down_proj")
    return sum(rows(values, f"mlp.{name}", [neuron]) for name in before) + columns(
        values, f"mlp.{after}", [neuron]
    )


def by_hand(model, count):
    found = {unit: {} for unit in ("layer", "head", "kv_group", "neuron")}
    for layer, sizes in enumerate(sizes_of(model)):
        values = counted(model, layer, count)
        found["layer"][layer, layer] = sum(value.sum().item() for value in values.values())
        size = sizes.query_heads // sizes.kv_heads
        for head in range(sizes.query_heads):
            own, shared = of_attention(values, sizes, [head], head // size)
            found["head"][layer, head] = (own + shared / size).item()
        for group in range(sizes.kv_heads):
            found["kv_group"][layer, group] = sum(
                of_attention(values, sizes, span(group, size), group)
            ).item()
        for neuron in range(sizes.ffn):
            found["neuron"][layer, neuron] = of_neuron(values, neuron).item()
    return found


@pytest.mark.parametrize(
    ("metric", "count"), [("taylor", lambda w: (w * w.grad).abs()), ("magnitude", lambda w: w.abs())]
)
def test_scores_equal_loops_over_the_parameters(model, calibration, metric, count):
    table = scores_of(model, calibration)
    backward(model, calibration)
    for unit, expected in by_hand(model, count).items():
        assert by_unit(table, unit, metric) == pytest.approx(expected, rel=1e-7), unit


def test_the_gradient_of_a_mask_is_that_of_the_weights_behind_it(model, calibration):
    """|sum of w dL/dw| over the columns of the output or the down projection."""
    table = scores_of(model, calibration)
    backward(model, calibration)
    gpt2 = "gpt2" in model.config.model_type
    output, down = ("attn.c_proj", "mlp.c_proj") if gpt2 else ("self_attn.o_proj", "mlp.down_proj")
    heads, neurons = {}, {}
    for layer, sizes in enumerate(sizes_of(model)):
        values = counted(model, layer, lambda w: w * w.grad)
        for head in range(sizes.query_heads):
            heads[layer, head] = columns(values, output, span(head, sizes.head_dim)).abs().item()
        for neuron in range(sizes.ffn):
            neurons[layer, neuron] = columns(values, down, [neuron]).abs().item()
    assert by_unit(table, "head", "gradient_batch") == pytest.approx(heads, rel=1e-7, abs=1e-12)
    assert by_unit(table, "neuron", "gradient_batch") == pytest.approx(neurons, rel=1e-7, abs=1e-12)
