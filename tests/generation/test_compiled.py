"""Compiled decoding gives the tokens of plain decoding, and is compiled once."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import MistralConfig, MistralForCausalLM

from copra.data.sequences import GenerationSpec
from copra.generation import decode as module
from copra.generation.compiled import Compiled, positions
from copra.generation.decode import decode
from copra.models.looping import loop_layers
from copra.schema.loop import Loop
from copra.utils.errors import CopraError
from helpers.decodings import DECODINGS, LIMIT, PAD

pytestmark = pytest.mark.slow

OPTIONS = {"stop": 9, "pad": PAD, "max_new_tokens": LIMIT}


@pytest.fixture(autouse=True)
def _fresh():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("any_model", ["gpt2", "copra_llama"], indirect=True)
def test_tokens_equal_the_plain_ones(any_model, prompts, extra_modules, monkeypatch):
    """Every way to answer, with a prefix and without, a full last batch and one to fill up."""
    monkeypatch.setattr(module, "CHECK_EVERY", {"cpu": 3})
    counter = CompileCounter()
    compiled = Compiled(any_model, 3, 64, backend=counter)
    for decoding in DECODINGS.values():
        for prefix in ((), (11, 2, 35)):
            if decoding is not None and decoding.emulated and prefix:
                continue
            options = OPTIONS | {"extra_modules": extra_modules, "prefix": prefix}
            plain = decode(any_model, prompts, decoding, batch_size=8, **options)
            assert decode(any_model, prompts, decoding, batch_size=3, compiled=compiled, **options) == plain
    assert counter.frame_count == 1


@pytest.mark.parametrize("any_model", ["gpt2", "copra_llama"], indirect=True)
def test_tokens_of_a_looped_model_equal_the_plain_ones(any_model, prompts):
    """All visits of its layers are in one piece of compiled code."""
    loop_layers(any_model, Loop(layers=(1, 2), times=3))
    counter = CompileCounter()
    compiled = Compiled(any_model, 3, 64, backend=counter)
    for decoding in (None, DECODINGS["hidden"]):
        plain = decode(any_model, prompts, decoding, batch_size=8, **OPTIONS)
        assert decode(any_model, prompts, decoding, batch_size=3, compiled=compiled, **OPTIONS) == plain
    assert counter.frame_count == 1


def test_given_latents_follow_the_rows_of_a_batch_that_is_filled_up(make_model, prompts):
    model, decoding = make_model("llama"), DECODINGS["hidden"]
    latents = torch.randn(8, 3, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    compiled = Compiled(model, 3, 64, backend=CompileCounter())
    plain = decode(model, prompts, decoding, batch_size=8, latents=latents, **OPTIONS)
    found = decode(model, prompts, decoding, batch_size=3, latents=latents, compiled=compiled, **OPTIONS)
    assert found == plain != decode(model, prompts, decoding, batch_size=8, **OPTIONS)


@pytest.mark.skipif(not shutil.which("gcc"), reason="inductor needs gcc to compile for a CPU")
def test_tokens_of_inductor_equal_the_plain_ones(make_model, prompts):
    model, decoding = make_model("llama"), DECODINGS["hidden"]
    compiled = Compiled(model, 4, positions(prompts, decoding, (), LIMIT))
    plain = decode(model, prompts, decoding, batch_size=4, **OPTIONS)
    for _ in range(2):
        assert decode(model, prompts, decoding, batch_size=4, compiled=compiled, **OPTIONS) == plain


@pytest.mark.gpu
def test_tokens_of_a_gpu_equal_those_of_the_cpu(make_model, prompts):
    """In float64, plain and compiled."""
    model, decoding = make_model("llama"), DECODINGS["hidden"]
    expected = decode(model, prompts, decoding, batch_size=4, **OPTIONS)
    model = model.to("cuda")
    assert decode(model, prompts, decoding, batch_size=4, **OPTIONS) == expected
    compiled = Compiled(model, 4, positions(prompts, decoding, (), LIMIT))
    assert decode(model, prompts, decoding, batch_size=4, compiled=compiled, **OPTIONS) == expected


def test_rows_that_have_ended_stay_until_the_last_has(make_model, prompts, monkeypatch):
    model, options = make_model("llama"), OPTIONS | {"stop": 24, "max_new_tokens": 60}
    plain = decode(model, prompts[:3], None, batch_size=3, **options)
    compiled, sizes = Compiled(model, 4, 128, backend="eager"), []
    body = compiled.body
    monkeypatch.setattr(compiled, "body", lambda *given: sizes.append(len(given[0])) or body(*given))
    assert decode(model, prompts[:3], None, batch_size=4, compiled=compiled, **options) == plain
    # One pass for the prompts, then one for each token but the last.
    lengths = [len(answer.tokens) for answer in plain]
    assert len(set(lengths)) == 3
    assert sizes == [4] * max(lengths)
    assert max(lengths) < 60


def test_prompts_of_one_token(make_model):
    model, prompts, counter = make_model("llama"), [[3], [17]], CompileCounter()
    compiled = Compiled(model, 2, 64, backend=counter)
    plain = decode(model, prompts, None, batch_size=2, **OPTIONS)
    for _ in range(2):
        assert decode(model, prompts, None, batch_size=2, compiled=compiled, **OPTIONS) == plain
    assert counter.frame_count == 1


def test_a_prompt_attends_to_itself_alone(make_model, prompts, monkeypatch):
    """Not to the room for its answer, as the tokens after it do."""
    model, seen = make_model("gpt2"), []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, *given, **options: (
            seen.append((query.shape[2], key.shape[2])) or attend(query, key, *given, **options)
        ),
    )
    compiled = Compiled(model, 8, 64, backend="eager")
    decode(model, prompts, DECODINGS["jacobi 1"], batch_size=8, compiled=compiled, **OPTIONS)
    # 14 tokens, a marker and 3 latents; then the latents again with the marker after them.
    assert {pair for pair in seen if pair[0] > 1} == {(18, 18), (4, 19)}
    assert {pair for pair in seen if pair[0] == 1} <= {(1, 64)}


def test_positions_are_those_of_the_longest_prompt_in_blocks():
    thinking = GenerationSpec((47,), 3, "hidden", 48, (49, 46))
    prompts = [[1] * 5, [1] * 40]
    assert positions(prompts, None, (), 24) == 64
    assert positions(prompts, None, (), 25) == 128
    assert positions(prompts, thinking, (), 18) == 64
    assert positions(prompts, thinking, (), 19) == 128
    assert positions(prompts, thinking, (1,), 18) == 128
    assert positions([], None, (), 3) == 64


def test_a_window_shorter_than_an_answer_is_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 50}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=64)
    model = MistralForCausalLM(config)
    with pytest.raises(CopraError, match=r"64 only.*evaluation\.compile"):
        Compiled(model, 1, 128, backend="eager")
    assert Compiled(model, 1, 64, backend="eager").length == 64
