"""Slow plain references for scores: an example at a time, no cache, no padding, every latent anew."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from copra.data.sequences import IGNORED, GenerationSpec, Sample
from copra.models.anatomy import attention_output, blocks, ffn_output
from copra.models.shape import shape_of

Masks = Mapping[str, Sequence[Tensor]]
"""For units of a kind (layer, head, neuron) a factor a layer, token and unit: [N, U] each."""


def by_unit(rows: Sequence[dict], unit: str, metric: str) -> dict[tuple[int, int], float]:
    """The scores of a table by layer and index; of blocks by first layer and length."""
    key = "length" if unit == "block" else "index"
    chosen = [row for row in rows if (row["unit"], row["metric"]) == (unit, metric)]
    found = {(row["layer"], row[key]): row["score"] for row in chosen}
    assert len(found) == len(chosen), "a unit has one score"
    return found


def sizes_of(model: nn.Module):
    return shape_of(model.config.to_dict()).layers


def inputs(
    model: nn.Module,
    sample: Sample,
    decoding: GenerationSpec | None,
    feed: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> Tensor:
    """The input embeddings [N, d] of a sample: each latent is the final state of all that is before it."""
    vectors = [model.get_input_embeddings().weight[token] for token in sample.tokens]
    for place in range(sample.first_latent, sample.first_latent + sample.n_latents):
        if decoding.thought == "hidden":
            vectors[place] = feed(final_states(model, torch.stack(vectors[:place]))[-1])
    return torch.stack(vectors)


def final_states(model: nn.Module, vectors: Tensor) -> Tensor:
    """What is after the final norm, [N, d], from input embeddings [N, d]."""
    return model.base_model(inputs_embeds=vectors[None], use_cache=False).last_hidden_state[0]


def loss(
    model: nn.Module,
    sample: Sample,
    decoding: GenerationSpec | None,
    masks: Masks | None = None,
    feed: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> Tensor:
    """The mean cross-entropy over the labels of a sample, with units multiplied by masks."""
    with masked(model, masks or {}):
        hidden = final_states(model, inputs(model, sample, decoding, feed))
    logits = model.get_output_embeddings()(hidden)
    terms = [
        cross_entropy(logits[place - 1], torch.tensor(label))
        for place, label in enumerate(sample.labels)
        if label != IGNORED
    ]
    return sum(terms) / len(terms)


@contextlib.contextmanager
def masked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Multiply what units give, at each token by the factor for it."""

    def on_layer(mask: Tensor):
        return lambda _, args, output: args[0] + mask[: output.shape[1]] * (output - args[0])

    def on_input(mask: Tensor):
        def hook(_, args):
            x = args[0].unflatten(-1, (mask.shape[1], -1))
            return ((x * mask[: x.shape[1], :, None]).flatten(-2),)

        return hook

    handles = []
    for layer, block in enumerate(blocks(model)):
        if "layer" in masks:
            handles.append(block.register_forward_hook(on_layer(masks["layer"][layer])))
        for kind, part in (("head", attention_output), ("neuron", ffn_output)):
            if kind in masks:
                handles.append(part(block).register_forward_pre_hook(on_input(masks[kind][layer])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ones(model: nn.Module, sample: Sample) -> dict[str, list[Tensor]]:
    """Masks that change nothing."""
    n, sizes = len(sample.tokens), sizes_of(model)
    counts = {
        "layer": [1] * len(sizes),
        "head": [size.query_heads for size in sizes],
        "neuron": [size.ffn for size in sizes],
    }
    return {
        kind: [torch.ones(n, count, dtype=torch.float64) for count in per_layer]
        for kind, per_layer in counts.items()
    }


def activations(
    model: nn.Module, sample: Sample, decoding: GenerationSpec | None
) -> tuple[list[Tensor], list[Tensor]]:
    """For each layer the inputs of the output projection, [N, H*D], and of the down projection, [N, I]."""
    vectors = inputs(model, sample, decoding)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    handles = [
        part(block).register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0][0]))
        for block in blocks(model)
        for part, kept in zip((attention_output, ffn_output), found, strict=True)
    ]
    final_states(model, vectors)
    for handle in handles:
        handle.remove()
    return found


def residual_stream(model: nn.Module, sample: Sample, decoding: GenerationSpec | None) -> list[Tensor]:
    """x^0 .. x^L of a sample, [N, d] each, by calling the blocks one after another."""
    x = inputs(model, sample, decoding)[None]
    positions = torch.arange(x.shape[1])[None]
    options = {}
    if hasattr(model.base_model, "wpe"):
        x = x + model.base_model.wpe(positions)
    else:
        options["position_embeddings"] = model.base_model.rotary_emb(x, positions)
    states = [x[0]]
    for block in blocks(model):
        # Without a mask these attentions are causal.
        x = block(x, **options)
        states.append(x[0])
    return states
