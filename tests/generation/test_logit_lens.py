"""What latents would say, against a plain loop: a prompt at a time, no cache, in float64."""

from types import SimpleNamespace

import pytest
import torch

from copra.data.sequences import GenerationSpec
from copra.generation.answering import GenerationOptions
from copra.generation.decode import decode
from copra.generation.logit_lens import logit_lens
from copra.models.extra_modules import make_extra_modules

PAD, END, K = 0, 46, 4
WAYS = {
    "raw": GenerationSpec((47,), 3, "hidden", 48, (49,)),
    "scaled": GenerationSpec((47,), 3, "hidden", 48, (49,), "scaled"),
    "projected": GenerationSpec((47,), 3, "hidden", 48, (49,), "projected"),
    "one": GenerationSpec((47,), 1, "hidden", 48, (49,)),
    "iterated": GenerationSpec((47,), 4, "hidden", 48, (49,), "raw", iterations=2),
}


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 47, (length,), generator=generator).tolist() for length in (4, 9, 1, 6)]


def checkpoint_of(model, extra_modules=None, end: int = END):
    tokenizer = SimpleNamespace(eos_token_id=end, pad_token_id=PAD)
    return SimpleNamespace(model=model, tokenizer=tokenizer, extra_modules=extra_modules)


@torch.no_grad()
def plain_states(model, prompt, decoding, extra_modules) -> list[torch.Tensor]:
    """The hidden state before each latent as it is fed in the last pass; every pass recomputes all."""
    embedding = model.get_input_embeddings().weight
    inputs = [embedding[token] for token in [*prompt, *decoding.prefix_ids]]
    mean = embedding.norm(dim=1).mean()

    def body(vectors):
        stacked = torch.stack(vectors)[None]
        return model.base_model(inputs_embeds=stacked, use_cache=False).last_hidden_state[0]

    def feed(state):
        if decoding.latent_input == "projected":
            return extra_modules["projection"](state)
        return state / state.norm() * mean if decoding.latent_input == "scaled" else state

    n = decoding.latents
    if decoding.iterations is None:
        states = []
        for _ in range(n):
            states.append(body(inputs)[-1])
            inputs.append(feed(states[-1]))
        return states
    latents = [embedding[decoding.latent_token]] * n
    for _ in range(decoding.iterations):
        states = list(body([*inputs, *latents])[len(inputs) - 1 : len(inputs) + n - 1])
        latents = [feed(state) for state in states]
    return states


@pytest.mark.parametrize("any_model", ["gpt2", "copra_llama"], indirect=True)
@pytest.mark.parametrize("name", WAYS)
def test_tokens_and_probabilities_equal_the_plain_ones(any_model, prompts, name):
    decoding = WAYS[name]
    torch.manual_seed(1)
    extra_modules = make_extra_modules(any_model, {"projection": {}} if name == "projected" else {})
    checkpoint = checkpoint_of(any_model, extra_modules)
    seen = logit_lens(checkpoint, prompts, decoding, GenerationOptions(5, batch_size=3), k=K)
    options = {"stop": END, "pad": PAD, "max_new_tokens": 5, "extra_modules": extra_modules}
    answers = decode(any_model, prompts, decoding, batch_size=4, **options)
    head = any_model.get_output_embeddings().weight
    for prompt, one, answer in zip(prompts, seen, answers, strict=True):
        assert one.answer == answer
        states = plain_states(any_model, prompt, decoding, extra_modules)
        assert len(one.tokens) == len(states) == decoding.latents
        for state, tokens, probabilities in zip(states, one.tokens, one.probabilities, strict=True):
            expected = (head @ state).softmax(0)
            order = expected.argsort(descending=True)[:K].tolist()
            assert tokens == order
            assert probabilities == pytest.approx(expected[order].tolist(), abs=1e-4)


def test_the_latents_say_different_things(any_model, prompts):
    """Otherwise a lens that looks at the wrong place would pass."""
    (one, *_) = logit_lens(checkpoint_of(any_model), prompts, WAYS["raw"], GenerationOptions(1), k=K)
    assert len({tuple(tokens) for tokens in one.tokens}) == 3


def test_logits_are_read_at_latents_and_generated_tokens_only(any_model, prompts):
    read: list[int] = []
    any_model.get_output_embeddings().register_forward_hook(
        lambda _, arguments, __: read.append(arguments[0].shape[:-1].numel())
    )
    checkpoint = checkpoint_of(any_model, end=-1)
    logit_lens(checkpoint, prompts, WAYS["raw"], GenerationOptions(2, batch_size=4))
    assert read == [4, 4, 4 * 3]
    read.clear()
    logit_lens(checkpoint, prompts, WAYS["raw"], GenerationOptions(2, batch_size=3))
    assert read == [3, 3, 3 * 3, 1, 1, 1 * 3]
