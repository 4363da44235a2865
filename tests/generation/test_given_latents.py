"""Latent inputs that are read out, and given, against plain decoding: one prompt, no cache, float64."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from plain_decoding import plain_latents, plain_tokens

from copra.generation.decode import decode
from copra.generation.latent_inputs import latent_inputs
from copra.generation.prompts import Prompts
from helpers.decodings import DECODINGS, HIDDEN, LENGTHS, LIMIT, PAD

WAYS = ("hidden", "scaled", "one hidden", "bare hidden", "projected", "jacobi 2", "jacobi 9")
CASES = [
    *(("copra_llama", way) for way in WAYS),
    *(("gpt2", way) for way in ("hidden", "jacobi projected")),
    *(("llama", way) for way in ("projected", "bare jacobi")),
]
by_case = pytest.mark.parametrize(("any_model", "name"), CASES, indirect=["any_model"])
one_model = pytest.mark.parametrize("any_model", ["copra_llama"], indirect=True)
OPTIONS = {"stop": -1, "pad": PAD, "max_new_tokens": LIMIT}


def tokens_of(model, prompts, decoding, latents, batch_size=3, **options) -> list[list[int]]:
    found = decode(model, prompts, decoding, latents=latents, batch_size=batch_size, **OPTIONS | options)
    return [answer.tokens for answer in found]


def own_inputs(model, prompts, decoding, extra_modules, batch_size=3, prefix=()) -> torch.Tensor:
    tokenizer = SimpleNamespace(eos_token_id=-1, pad_token_id=PAD)
    checkpoint = SimpleNamespace(model=model, tokenizer=tokenizer, extra_modules=extra_modules)
    return latent_inputs(checkpoint, Prompts(prefix, prompts, None), decoding, batch_size)


@by_case
def test_inputs_are_those_of_plain_latents_in_the_order_of_the_prompts(
    any_model, prompts, extra_modules, name
):
    decoding = DECODINGS[name]
    expected = torch.stack(
        [torch.stack(plain_latents(any_model, prompt, decoding, extra_modules)) for prompt in prompts]
    )
    assert expected.shape == (8, decoding.latents, 32)
    for batch_size in (1, 3, 8):
        found = own_inputs(any_model, prompts, decoding, extra_modules, batch_size)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@by_case
def test_own_inputs_give_the_tokens_of_ordinary_decoding(any_model, prompts, extra_modules, name):
    decoding, options = DECODINGS[name], {"extra_modules": extra_modules}
    own = own_inputs(any_model, prompts, decoding, extra_modules)
    expected = tokens_of(any_model, prompts, decoding, None, **options)
    assert len(set(map(tuple, expected))) >= 6
    for batch_size in (1, 3, 8):
        assert tokens_of(any_model, prompts, decoding, own, batch_size, **options) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("any_model", "name"),
    [("copra_llama", "hidden"), ("gpt2", "hidden"), ("llama", "bare jacobi")],
    indirect=["any_model"],
)
def test_other_inputs_give_the_tokens_of_plain_decoding_with_them(any_model, prompts, extra_modules, name):
    """Inputs of other prompts, their mean, zeros, and any others, one after another for each prompt."""
    decoding = DECODINGS[name]
    own = own_inputs(any_model, prompts, decoding, extra_modules)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(own.shape, generator=generator, dtype=own.dtype) * own.std()
    texts = set()
    for given in (own.roll(1, 0), own.mean(0).expand_as(own), torch.zeros_like(own), drawn):
        expected = [
            plain_tokens(any_model, prompt, decoding, LIMIT, extra_modules, latents)
            for prompt, latents in zip(prompts, given, strict=True)
        ]
        texts.add(tuple(map(tuple, expected)))
        for batch_size in (3, 8):
            found = tokens_of(any_model, prompts, decoding, given, batch_size, extra_modules=extra_modules)
            assert found == expected
    # Otherwise inputs that nobody reads would pass.
    assert len(texts) == 4


@one_model
def test_a_common_prefix_changes_no_position_of_latents(any_model, prompts, extra_modules):
    prefix, decoding = [11, 2, 35], DECODINGS["projected"]
    whole = [[*prefix, *prompt] for prompt in prompts]
    given = own_inputs(any_model, prompts, decoding, extra_modules, prefix=prefix).roll(1, 0)
    assert torch.equal(given, own_inputs(any_model, whole, decoding, extra_modules).roll(1, 0))
    expected = [
        plain_tokens(any_model, prompt, decoding, LIMIT, extra_modules, latents)
        for prompt, latents in zip(whole, given, strict=True)
    ]
    options = {"extra_modules": extra_modules, "prefix": prefix}
    assert tokens_of(any_model, prompts, decoding, given, **options) == expected


@one_model
@pytest.mark.parametrize("name", ["hidden", "jacobi 2"])
def test_given_inputs_are_read_in_one_pass_with_the_prompt(any_model, prompts, name):
    passes: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    given = torch.zeros(8, 3, 32)
    tokens_of(any_model, prompts, DECODINGS[name], given, batch_size=8, max_new_tokens=2)
    assert passes == [max(LENGTHS) + 1 + 3 + 1, 1]


@one_model
def test_processes_share_out_the_reading_of_inputs(any_model, prompts, monkeypatch):
    """Batches of the prompts by length, the first, third and so on for the first of two processes."""
    whole = own_inputs(any_model, prompts, HIDDEN, None)
    parts: list[list] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1", "both"):
        monkeypatch.setenv("RANK", rank if rank != "both" else "0")
        gather = (lambda own: parts.append(own) or [own]) if rank != "both" else (lambda _: parts)
        monkeypatch.setattr("copra.utils.processes.all_gather", gather)
        found = own_inputs(any_model, prompts, HIDDEN, None)
    order = sorted(range(8), key=LENGTHS.__getitem__)
    assert [[batch for batch, _ in part] for part in parts] == [[order[:3], order[6:]], [order[3:6]]]
    assert torch.equal(found, whole)


@one_model
def test_a_cached_batch_belongs_to_its_inputs(any_model, prompts):
    kept, made = {}, []

    def keep(depends, answer):
        name = json.dumps(depends)
        if name not in kept:
            made.append(len(depends[-1]))
            kept[name] = answer()
        return kept[name]

    own = own_inputs(any_model, prompts, HIDDEN, None)
    changed = own.clone()
    changed[0, 2, 5] += 1e-3
    for given, expected in (
        (None, [3, 3, 2]),
        (own, [3, 3, 2]),
        (own.clone(), []),
        (own.roll(1, 0), [3, 3, 2]),
        (changed, [3]),
    ):
        made.clear()
        answers = tokens_of(any_model, prompts, HIDDEN, given, answer_cache=keep)
        assert answers == tokens_of(any_model, prompts, HIDDEN, given)
        assert made == expected


@one_model
def test_inputs_in_bfloat16_have_keys_too(any_model, prompts):
    keys = []
    given = torch.zeros(8, 3, 32, dtype=torch.bfloat16)
    tokens_of(any_model, prompts, HIDDEN, given, answer_cache=lambda key, make: keys.append(key) or make())
    assert len(keys) == 3


@one_model
def test_without_the_last_latent_the_first_ones_are_the_same(any_model, prompts, extra_modules):
    """So decoding with one latent fewer leaves out the last one, and changes none."""
    for name in ("hidden", "projected", "jacobi 1", "jacobi 2", "jacobi projected"):
        decoding = DECODINGS[name]
        fewer = replace(decoding, latents=decoding.latents - 1)
        own = own_inputs(any_model, prompts, decoding, extra_modules)[:, :-1]
        options = {"extra_modules": extra_modules}
        assert tokens_of(any_model, prompts, fewer, own, **options) == tokens_of(
            any_model, prompts, fewer, None, **options
        )
