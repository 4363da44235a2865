"""Batched, cached decoding against a plain one: a prompt at a time, no cache, in float64."""

import pytest
import torch

from copra.inference import decode as module
from copra.inference.decode import Answer, decode
from copra.reasoning.layout import Decoding

PAD, LENGTHS, LIMIT = 0, (3, 11, 6, 6, 1, 8, 14, 2), 10
HIDDEN = Decoding(before=(47,), latents=3, thought="hidden", latent_token=48, after=(49,))
DECODINGS = {
    "none": None,
    "hidden": HIDDEN,
    "scaled": Decoding((47,), 3, "hidden", 48, (49,), "scaled"),
    "one hidden": Decoding((47,), 1, "hidden", 48, (49,)),
    "bare hidden": Decoding((), 2, "hidden", 48, ()),
    "embedding": Decoding((47,), 3, "embedding", 48, (49,)),
    "zero latents": Decoding((47,), 0, "hidden", 48, (49,)),
    "no thought": Decoding((), 0, "hidden", 48, ()),
}


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(1, 47, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def plain_tokens(model, prompt, decoding, length: int) -> list[int]:
    """`length` greedy tokens; every one of them, and every latent, recomputes the whole prefix."""
    embedding = model.get_input_embeddings().weight
    before, latents, after = [], 0, []
    if decoding is not None:
        before, latents, after = list(decoding.before), decoding.latents, list(decoding.after)

    def last(vectors):
        return model.base_model(inputs_embeds=torch.stack(vectors)[None], use_cache=False).last_hidden_state[
            0, -1
        ]

    inputs = [embedding[token] for token in [*prompt, *before]]
    for _ in range(latents):
        if decoding.thought == "embedding":
            inputs.append(embedding[decoding.latent_token])
            continue
        vector = last(inputs)
        scaled = decoding.latent_input == "scaled"
        inputs.append(vector / vector.norm() * embedding.norm(dim=1).mean() if scaled else vector)
    inputs += [embedding[token] for token in after]
    tokens: list[int] = []
    for _ in range(length):
        logits = model.get_output_embeddings().weight @ last(inputs)
        tokens.append(int(logits.argmax()))
        inputs.append(embedding[tokens[-1]])
    return tokens


def plain_answers(texts, stop: int) -> list[Answer]:
    return [
        Answer(text[: text.index(stop) + 1], False) if stop in text else Answer(text, True) for text in texts
    ]


def common_token(texts) -> int:
    """The token that ends as many of the texts as possible early, but not all of them."""
    early = {token: sum(token in text[:-2] for text in texts) for text in texts for token in text}
    stop = max(
        (token for token in early if early[token] < len(texts)), key=lambda token: (early[token], token)
    )
    assert early[stop] >= 2
    return stop


def answers(model, prompts, decoding, batch_size: int, stop: int, **options) -> list[Answer]:
    options = {"stop": stop, "pad": PAD, "max_new_tokens": LIMIT, "batch_size": batch_size, **options}
    return decode(model, prompts, decoding, **options)


@pytest.mark.parametrize("name", DECODINGS)
def test_batched_answers_equal_plain_ones(any_model, prompts, name, monkeypatch):
    decoding = DECODINGS[name]
    texts = [plain_tokens(any_model, prompt, decoding, LIMIT) for prompt in prompts]
    stop = common_token(texts)
    expected = plain_answers(texts, stop)
    assert {answer.hit_length_limit for answer in expected} == {True, False}
    kept: list[int] = []
    keep = module.Run.keep

    def spy(self, rows):
        kept.append(len(rows))
        keep(self, rows)

    monkeypatch.setattr(module.Run, "keep", spy)
    for batch_size in (1, 3, len(prompts)):
        assert answers(any_model, prompts, decoding, batch_size, stop) == expected
    # A look every third token, as on a GPU, changes the work and not the answers.
    monkeypatch.setattr(module, "LOOK_EVERY", {"cpu": 3})
    assert answers(any_model, prompts, decoding, len(prompts), stop) == expected


def test_the_models_tell_prompts_and_latents_apart(any_model, prompts):
    """Otherwise the comparisons above would hold for any decoding."""
    texts = {
        name: [tuple(plain_tokens(any_model, prompt, decoding, 6)) for prompt in prompts]
        for name, decoding in DECODINGS.items()
    }
    assert len(set(texts["hidden"])) >= 6
    names = ("none", "hidden", "scaled", "one hidden", "embedding", "zero latents")
    assert len({tuple(texts[name]) for name in names}) == len(names)


def test_ended_rows_leave_the_batch(any_model, prompts, monkeypatch):
    texts = [plain_tokens(any_model, prompt, HIDDEN, LIMIT) for prompt in prompts]
    # The stop token that makes the first and the last end lie furthest apart.
    ends = {
        stop: sorted(text.index(stop) if stop in text else LIMIT for text in texts)
        for stop in {token for text in texts for token in text}
    }
    stop = next(token for token, places in ends.items() if places[4] < places[-1])
    widths: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    assert answers(any_model, prompts, HIDDEN, 8, stop) == plain_answers(texts, stop)
    alive = [sum(place > step for place in ends[stop]) for step in range(LIMIT)]
    # A batch is cut as soon as half of it has ended.
    expected, size = [8] * 4, 8
    for going in alive[: LIMIT - 1]:
        if not going:
            break
        size = going if going <= size // 2 else size
        expected.append(size)
    assert widths == expected
    assert widths[-1] < 8


def test_a_forced_length_goes_on_after_the_end(any_model, prompts):
    texts = [plain_tokens(any_model, prompt, HIDDEN, LIMIT) for prompt in prompts]
    stop = common_token(texts)
    forced = answers(any_model, prompts, HIDDEN, 3, stop, force_length=True)
    assert [answer.tokens for answer in forced] == texts


def test_the_length_limit_is_hit_only_by_answers_that_do_not_end(any_model, prompts):
    text = plain_tokens(any_model, prompts[0], HIDDEN, LIMIT)
    stop = text[2]
    place = text.index(stop)
    for limit, expected in (
        (place + 2, Answer(text[: place + 1], False)),
        (place + 1, Answer(text[: place + 1], False)),
        (place, Answer(text[:place], True)),
    ):
        if limit:
            options = {"max_new_tokens": limit}
            assert answers(any_model, prompts[:1], HIDDEN, 1, stop, **options) == [expected]


def test_no_prompts_no_answers(any_model):
    assert answers(any_model, [], None, 4, 1) == []
