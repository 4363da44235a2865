"""Batched, cached decoding against a plain one: a prompt at a time, no cache, in float64."""

import json
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from plain_decoding import plain_tokens

from copra.generation import decode as module
from copra.generation.decode import Answer, decode
from copra.generation.session import read_prefix
from helpers.decodings import DECODINGS, HIDDEN, LENGTHS, LIMIT, PAD

# As many iterations as latents, or more, are the sequential chain.
EQUAL = {"jacobi 3": "hidden", "jacobi 9": "hidden"}
# Every way to answer with layers of unequal shapes; other models where they differ: positions, and masks.
QUICK = ("none", "hidden", "bare hidden", "projected", "jacobi 2", "jacobi projected", "emulated")
CASES = [
    *(pytest.param("copra_llama", way, marks=[] if way in QUICK else pytest.mark.slow) for way in DECODINGS),
    *(pytest.param("gpt2", way, marks=pytest.mark.slow) for way in ("jacobi projected", "emulated")),
    ("gpt2", "hidden"),
    ("llama", "hidden"),
]
by_case = pytest.mark.parametrize(("any_model", "name"), CASES, indirect=["any_model"])
one_model = pytest.mark.parametrize("any_model", ["copra_llama"], indirect=True)


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


@by_case
def test_batched_answers_equal_plain_ones(any_model, prompts, extra_modules, name, monkeypatch):
    decoding = DECODINGS[name]
    texts = [plain_tokens(any_model, prompt, decoding, LIMIT, extra_modules) for prompt in prompts]
    stop = common_token(texts)
    expected = plain_answers(texts, stop)
    assert {answer.hit_length_limit for answer in expected} == {True, False}
    for batch_size in (1, 3):
        assert (
            answers(any_model, prompts, decoding, batch_size, stop, extra_modules=extra_modules) == expected
        )
    # A look every third token, as on a GPU, changes the work and not the answers.
    monkeypatch.setattr(module, "CHECK_EVERY", {"cpu": 3})
    assert answers(any_model, prompts, decoding, len(prompts), stop, extra_modules=extra_modules) == expected


@pytest.mark.slow
@one_model
def test_the_models_tell_prompts_and_latents_apart(any_model, prompts, extra_modules):
    """Otherwise the comparisons above would hold for any decoding."""
    texts = {
        name: tuple(tuple(plain_tokens(any_model, prompt, decoding, 6, extra_modules)) for prompt in prompts)
        for name, decoding in DECODINGS.items()
    }
    for name in ("hidden", "projected", "jacobi 1", "emulated"):
        assert len(set(texts[name])) >= 6
    assert {name: texts[name] for name in EQUAL} == {name: texts[other] for name, other in EQUAL.items()}
    names = set(DECODINGS) - set(EQUAL) - {"bare hidden", "no thought", "bare jacobi"}
    assert len({texts[name] for name in names}) == len(names)
    assert len({texts[name] for name in ("bare hidden", "no thought", "bare jacobi")}) == 3


# Passes of the model before the first token: one a latent, one an iteration.
PASSES = {"hidden": 4, "jacobi 2": 3, "emulated": 1}


@pytest.mark.slow
@one_model
@pytest.mark.parametrize("name", PASSES)
def test_ended_rows_leave_the_batch(any_model, prompts, extra_modules, name):
    decoding, limit = DECODINGS[name], 16
    texts = [plain_tokens(any_model, prompt, decoding, limit, extra_modules) for prompt in prompts]
    # The stop token that makes the ends lie apart.
    ends = {
        stop: sorted(text.index(stop) if stop in text else limit for text in texts)
        for stop in sorted({token for text in texts for token in text})
    }
    _, stop = min((places[3], token) for token, places in ends.items() if places[3] < places[-1])
    widths: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    options = {"extra_modules": extra_modules, "max_new_tokens": limit}
    assert answers(any_model, prompts, decoding, 8, stop, **options) == plain_answers(texts, stop)
    alive = [sum(place > step for place in ends[stop]) for step in range(limit)]
    # A batch is cut as soon as half of it has ended.
    expected, size = [8] * PASSES[name], 8
    for going in alive[: limit - 1]:
        if not going:
            break
        size = going if going <= size // 2 else size
        expected.append(size)
    assert widths == expected
    assert widths[-1] < 8


@one_model
def test_a_forced_length_goes_on_after_the_end(any_model, prompts, extra_modules):
    texts = [plain_tokens(any_model, prompt, HIDDEN, LIMIT, extra_modules) for prompt in prompts]
    stop = common_token(texts)
    forced = answers(any_model, prompts, HIDDEN, 3, stop, force_length=True)
    assert [answer.tokens for answer in forced] == texts
    # Nor does it look for the end of a text.
    again = answers(any_model, prompts, HIDDEN, 3, stop, force_length=True, ends=lambda tokens: 1)
    assert again == forced


@one_model
def test_the_length_limit_is_hit_only_by_answers_that_do_not_end(any_model, prompts, extra_modules):
    text = plain_tokens(any_model, prompts[0], HIDDEN, LIMIT, extra_modules)
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


@one_model
def test_all_latents_of_a_batch_share_one_norm_of_the_embeddings(any_model, prompts, monkeypatch):
    from copra.models import networks

    taken: list[int] = []
    norm = networks.embedding_norm
    monkeypatch.setattr(networks, "embedding_norm", lambda model: taken.append(1) or norm(model))
    answers(any_model, prompts, DECODINGS["scaled"], 4, 1)
    assert len(taken) == 2


@one_model
def test_no_prompts_no_answers(any_model):
    assert answers(any_model, [], None, 4, 1) == []
    assert answers(any_model, [], None, 4, 1, prefix=[2, 3]) == []


@one_model
def test_processes_share_out_the_batches(any_model, prompts, monkeypatch):
    """Batches of the prompts by length, the first, third and so on for the first of two processes."""
    whole, order = answers(any_model, prompts, None, 3, 1), sorted(range(8), key=LENGTHS.__getitem__)
    parts: list[dict[int, Answer]] = []
    monkeypatch.setattr(
        "copra.utils.processes.all_gather", lambda own: parts.append(own) or [dict(enumerate(whole))]
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert answers(any_model, prompts, None, 3, 1) == whole
    for part, shared in zip(parts, (order[:3] + order[6:], order[3:6]), strict=True):
        assert part == {i: whole[i] for i in shared}


@pytest.mark.slow
@one_model
def test_a_batch_that_is_kept_is_not_answered(any_model, prompts):
    """It is known by all that its answers depend on but the model."""
    kept, made = {}, []

    def keep(depends, answer):
        name = json.dumps(depends)
        if name not in kept:
            made.append(len(depends[-1]))
            kept[name] = answer()
        return kept[name]

    def ask(decoding=HIDDEN, batch_size=3, **options):
        return answers(any_model, prompts, decoding, batch_size, 1, answer_cache=keep, **options)

    found = ask()
    assert (made, found) == ([3, 3, 2], answers(any_model, prompts, HIDDEN, 3, 1))
    assert (ask(), made) == (found, [3, 3, 2])
    for change in (
        {"decoding": replace(HIDDEN, latents=2)},
        {"decoding": None},
        {"max_new_tokens": 4},
        {"prefix": (4, 5)},
        {"force_length": True},
        {"batch_size": 4},
    ):
        made.clear()
        assert ask(**change) == answers(
            any_model, prompts, **{"decoding": HIDDEN, "batch_size": 3, "stop": 1} | change
        )
        assert sum(made) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("any_model", "name"),
    [("gpt2", "hidden"), *(("copra_llama", name) for name in ("none", "projected", "jacobi 2"))],
    indirect=["any_model"],
)
def test_a_shared_prefix_equals_prompts_with_it_written_out(any_model, prompts, extra_modules, name):
    decoding, prefix = DECODINGS[name], [11, 2, 35, 2, 40]
    texts = [plain_tokens(any_model, prefix + prompt, decoding, LIMIT, extra_modules) for prompt in prompts]
    assert texts[0] != plain_tokens(any_model, prompts[0], decoding, LIMIT, extra_modules)
    stop = common_token(texts)
    for batch_size in (3, len(prompts)):
        found = answers(
            any_model, prompts, decoding, batch_size, stop, extra_modules=extra_modules, prefix=prefix
        )
        assert found == plain_answers(texts, stop)


@one_model
def test_a_shared_prefix_may_be_known_already(any_model, prompts):
    """Its cache is left as it is, so that it serves again."""
    prefix, options = [11, 2, 35, 2, 40], {"stop": 0, "pad": PAD, "max_new_tokens": LIMIT, "batch_size": 2}
    read = decode(any_model, prompts, None, prefix=prefix, **options)
    with torch.inference_mode():
        known = read_prefix(any_model, prefix)
    for _ in range(2):
        assert decode(any_model, prompts, None, prefix=prefix, prefix_cache=known, **options) == read
        assert known.get_seq_length() == len(prefix)


@one_model
def test_a_shared_prefix_is_read_once(any_model, prompts):
    read: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs.get("input_ids", kwargs.get("inputs_embeds")).shape[:2]),
        with_kwargs=True,
    )
    options = {"prefix": [5, 6, 7, 8], "force_length": True, "max_new_tokens": 2}
    answers(any_model, prompts[:4], None, 2, 0, **options)
    # Two batches, the shorter prompts first: each reads its prompts and feeds one token back.
    assert [tuple(shape) for shape in read] == [(1, 4), (2, 6), (2, 1), (2, 11), (2, 1)]


def ends_with(pair):
    """Finds the end of a text: where these two tokens first stand side by side."""
    return lambda tokens: next((i + 2 for i, found in enumerate(pairwise(tokens)) if found == pair), None)


def plainly_ended(texts, pair, stop: int) -> list[Answer]:
    """Texts up to the pair, or up to the end token where that comes first."""
    cut = []
    for text, answer in zip(texts, plain_answers(texts, stop), strict=True):
        place = ends_with(pair)(text)
        cut.append(Answer(text[:place], False) if place and place <= len(answer.tokens) else answer)
    return cut


@pytest.mark.slow
@one_model
@pytest.mark.parametrize("check_every", [1, 3, 50])
def test_a_text_ends_where_it_is_said_to_end(any_model, prompts, extra_modules, monkeypatch, check_every):
    monkeypatch.setattr(module, "CHECK_EVERY", {"text": check_every})
    texts = [plain_tokens(any_model, prompt, HIDDEN, LIMIT, extra_modules) for prompt in prompts]
    # A pair and an end token such that some texts end by the one, some by the other, and some not at all.
    for pair, stop in product(dict.fromkeys(p for text in texts for p in pairwise(text[:8])), range(1, 50)):
        expected = plainly_ended(texts, pair, stop)
        ways = {tuple(a.tokens[-2:]) == pair if not a.hit_length_limit else None for a in expected}
        if ways == {True, False, None}:
            break
    assert ways == {True, False, None}
    for batch_size in (1, 3, 8):
        assert answers(any_model, prompts, HIDDEN, batch_size, stop, ends=ends_with(pair)) == expected


@one_model
def test_texts_that_have_ended_are_not_gone_on_with(any_model, prompts, extra_modules):
    """A look comes at the first token and then every eighth one."""
    texts, never = [plain_tokens(any_model, prompt, None, 12, extra_modules) for prompt in prompts], 50
    steps: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: steps.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    for length, expected in ((1, [8]), (2, [8] * 9), (9, [8] * 9), (10, [8] * 12)):
        steps.clear()
        options = {"max_new_tokens": 12, "ends": lambda t, n=length: n if len(t) >= n else None}
        found = answers(any_model, prompts, None, 8, never, **options)
        assert found == [Answer(text[:length], False) for text in texts]
        assert steps == expected
