import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from copra.errors import CopraError
from copra.importance.layers import layer_scores

EPSILON = 1e-6


def states_by_hand(model, tokens):
    """x^0 .. x^L of one example without padding, [T, d] each, by calling the blocks one after another."""
    model.eval()
    tokens, positions = tokens[None], torch.arange(len(tokens))[None]
    if model.config.model_type == "gpt2":
        x = model.transformer.wte(tokens) + model.transformer.wpe(positions)
        blocks, options = model.transformer.h, {}
    else:
        x = model.model.embed_tokens(tokens)
        blocks = model.model.layers
        options = {"position_embeddings": model.model.rotary_emb(x, positions)}
    states = [x[0]]
    for block in blocks:
        # Without a mask these attentions are causal.
        x = block(x, **options)
        states.append(x[0])
    return [state.detach().double() for state in states]


def by_hand(model, examples):
    states = [states_by_hand(model, tokens) for tokens, _ in examples]
    n_layers = len(states[0]) - 1
    scores = {}
    for layer in range(n_layers):
        cosines = torch.cat([cosine_similarity(x[layer], x[layer + 1], dim=-1) for x in states])
        scores["cosine", layer, 1] = 1 - cosines.mean().item()
    for start in range(n_layers):
        for length in range(1, n_layers - start + 1):
            angles = [
                math.acos(cosine_similarity(x[start][-1], x[start + length][-1], dim=-1).item()) / math.pi
                for x in states
            ]
            scores["angular", start, length] = sum(angles) / len(angles)
    return scores


def by_unit(rows):
    return {(row["metric"], row["layer"], row["length"]): row["score"] for row in rows}


def test_scores_equal_a_loop_over_examples_and_blocks(model, examples, batches_of):
    rows = layer_scores(model, batches_of(2))
    assert {(row["unit"], row["metric"]) for row in rows} == {("layer", "cosine"), ("block", "angular")}
    assert by_unit(rows) == pytest.approx(by_hand(model, examples), abs=EPSILON)


def test_neither_batches_nor_padding_change_them(model, batches_of):
    singly = by_unit(layer_scores(model, batches_of(1)))
    assert by_unit(layer_scores(model, batches_of(5, width=14))) == pytest.approx(singly, abs=EPSILON)


def test_a_block_that_does_nothing_scores_zero(model, batches_of):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".1." in name and ("o_proj" in name or "down_proj" in name or "c_proj" in name):
                parameter.zero_()
    scores = by_unit(layer_scores(model, batches_of(2)))
    assert scores["cosine", 1, 1] == pytest.approx(0, abs=EPSILON)
    assert scores["angular", 1, 1] == pytest.approx(0, abs=EPSILON)
    assert scores["angular", 0, 2] == pytest.approx(scores["angular", 0, 1])


def test_one_pass_without_logits_that_leaves_the_model_as_it_was(model, batches_of):
    passes, logits = [], []
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    model.lm_head.register_forward_hook(lambda *_: logits.append(1))
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    model.train()
    layer_scores(model, batches_of(5))
    assert (len(passes), len(logits), model.training) == (1, 0, True)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_no_examples_is_an_error(model):
    with pytest.raises(CopraError, match="empty"):
        layer_scores(model, [])
