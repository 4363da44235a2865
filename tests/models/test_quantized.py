"""int8 weights: what is stored, what is computed from it, and that both come back."""

import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from copra.data.batch import collate
from copra.data.sequences import GenerationSpec, Sample
from copra.generation.decode import decode
from copra.models.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.models.quantized import compare, quantize
from copra.utils.errors import CopraError
from helpers.manifests import provenance

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOKENS = torch.arange(1, 15)[None]


@pytest.fixture
def make(make_model, word_tokenizer, tmp_path):
    """Saves a tiny model and, in a second folder, the same with int8 weights; returns the model
    and both."""

    def make(kind: str = "llama", wanted=(), *, dtype: str = "float32", tied: bool = True):
        model = make_model(kind, len(word_tokenizer), double=False, tied=tied).to(getattr(torch, dtype))
        wanted = {name: {} for name in wanted}
        extra_modules = make_extra_modules(model, wanted)
        made_of = provenance(base={"dtype": dtype})
        save_checkpoint(tmp_path / "plain", model, word_tokenizer, made_of, None, extra_modules, wanted)
        load_checkpoint(tmp_path / "plain")
        quantized = quantize(tmp_path / "plain")
        made_of = provenance(base={"dtype": dtype}, quantized="int8")
        save_checkpoint(tmp_path / "int8", quantized, word_tokenizer, made_of, None, extra_modules, wanted)
        return model, tmp_path / "plain", tmp_path / "int8"

    return make


def matrices(model) -> dict[str, torch.Tensor]:
    """The weights of the decoder layers' projections, in float32."""
    state = model.state_dict()
    return {name: state[name].float() for name in state if name.split(".")[-2] in MATRICES}


def split(name: str) -> tuple[str, str]:
    """What the whole numbers and the scales of a weight are called in the file."""
    module = name.removesuffix("weight")
    return f"{module}_weight_qdata", f"{module}_weight_scale"


@pytest.mark.parametrize("kind", ["llama", "copra_llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_stored_is_within_half_a_step_of_the_weights(make, kind, dtype):
    model, _, folder = make(kind, dtype=dtype)
    stored = load_file(folder / WEIGHTS)
    weights = matrices(model)
    assert len(weights) == 3 * len(MATRICES)
    for name, weight in weights.items():
        values, scales = (stored[part] for part in split(name))
        assert values.dtype == torch.int8
        assert scales.dtype == torch.float32
        assert scales.shape == (len(weight), 1), "one scale an output channel"
        for row, whole, scale in zip(
            weight.tolist(), values.tolist(), scales.flatten().tolist(), strict=True
        ):
            assert math.isclose(scale, max(map(abs, row)) / 127.5, rel_tol=1e-6)
            for value, number in zip(row, whole, strict=True):
                # 2e-5 of a step is the rounding of the largest values in float32.
                assert abs(scale * number - value) <= scale * (0.5 + 2e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_all_else_is_stored_as_it_was(make, tied):
    model, plain, folder = make(tied=tied)
    before, after = load_file(plain / WEIGHTS), load_file(folder / WEIGHTS)
    others = set(before) - set(matrices(model))
    assert {name for name in after if not name.rsplit(".", 1)[-1].startswith("_weight_")} == others
    assert all(torch.equal(before[name], after[name]) for name in others)
    assert "model.embed_tokens.weight" in others
    assert ("lm_head.weight" in others) != tied


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "copra_llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_a_plain_model_with_the_rounded_weights(make, kind, tied):
    model, _, folder = make(kind, tied=tied)
    loaded = load_checkpoint(folder).model
    before, found = model(TOKENS).logits, loaded(TOKENS.to(loaded.device)).logits.cpu()
    stored = load_file(folder / WEIGHTS)
    for name in matrices(model):
        values, scales = (stored[part] for part in split(name))
        model.get_parameter(name).copy_(values.float() * scales)
    torch.testing.assert_close(found, model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 1e-2
    shared = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert shared == tied


def test_a_matrix_takes_about_a_quarter_of_its_bytes(make):
    model, plain, folder = make()
    before, after = load_checkpoint(plain).manifest, load_checkpoint(folder).manifest
    assert after.weights.bytes == (folder / WEIGHTS).stat().st_size
    assert after.parameters == before.parameters == sum(p.numel() for p in model.parameters())
    assert after.weights.dtype == "float32", "the type that is computed in, and of the cache"
    assert after.shape == before.shape
    weights = matrices(model)
    values = sum(weight.numel() for weight in weights.values())
    assert sum(load_file(folder / WEIGHTS)[split(name)[0]].nbytes for name in weights) == values
    # A scale of 4 bytes and a zero of one byte a row, and what the file says of each tensor beside it.
    rows = sum(len(weight) for weight in weights.values())
    saved = (plain / WEIGHTS).stat().st_size - (folder / WEIGHTS).stat().st_size
    headers = [int.from_bytes((each / WEIGHTS).read_bytes()[:8], "little") for each in (plain, folder)]
    assert saved + headers[1] - headers[0] == 3 * values - 5 * rows


@pytest.mark.slow
def test_a_fresh_process_computes_the_same_bits(make, tmp_path):
    _, _, folder = make("copra_llama")
    code = (
        "import sys, torch; from pathlib import Path; from copra.models.checkpoint import load_checkpoint\n"
        "torch.set_num_threads(1); model = load_checkpoint(Path(sys.argv[1])).model\n"
        "torch.save(model(torch.arange(1, 15)[None].to(model.device)).logits.detach().cpu(), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, folder, tmp_path / "logits"], check=True)
    here = load_checkpoint(folder).model
    assert torch.equal(torch.load(tmp_path / "logits"), here(TOKENS.to(here.device)).logits.cpu())


def test_equal_runs_write_equal_folders(make):
    files = []
    for _ in range(2):
        _, _, folder = make("copra_llama")
        files.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert files[0] == files[1]


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_activations_where_the_device_has_them(make, monkeypatch, has):
    monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda: has)
    model, _, folder = make(dtype="bfloat16")
    loaded = load_checkpoint(folder)
    assert loaded.manifest.weights.dtype == "bfloat16"
    assert loaded.model.dtype == (torch.bfloat16 if has else torch.float32)
    with torch.no_grad():
        found = loaded.model(TOKENS.to(loaded.model.device)).logits.cpu()
        expected = model.float()(TOKENS).logits
    assert found.dtype == loaded.model.dtype
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("latents", [0, 3])
def test_answers_do_not_depend_on_the_batch(make, latents):
    _, _, folder = make()
    model = load_checkpoint(folder).model.to(torch.float64)
    decoding = GenerationSpec((3,), latents, "hidden", 4, (5,)) if latents else None
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(6, 15, (n,), generator=generator).tolist() for n in (3, 11, 6, 6, 1, 8)]

    def answers(batch_size: int):
        limits = {"stop": 0, "pad": 0, "max_new_tokens": 10}
        return decode(model, prompts, decoding, batch_size=batch_size, **limits)

    assert answers(1) == answers(6)
    assert len({tuple(answer.tokens) for answer in answers(1)}) > 1


def test_parts_stay_as_they_are(make):
    wanted = ("projection", "mind_reader", "emulator")
    _, plain, folder = make(wanted=wanted)
    before, after = (
        load_checkpoint(plain).extra_modules.state_dict(),
        load_checkpoint(folder).extra_modules.state_dict(),
    )
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gpt2_is_refused(make):
    with pytest.raises(
        CopraError, match=r"plain: a model of type gpt2 cannot .* Leave the quantize step out"
    ):
        make("gpt2")


def test_without_torchao_the_message_says_what_to_install(make, monkeypatch):
    _, plain, folder = make()
    monkeypatch.setattr("copra.models.quantized.is_torchao_available", lambda version: False)
    for work in (lambda: load_checkpoint(folder), lambda: quantize(plain)):
        with pytest.raises(CopraError, match=r"pip install torchao==[\d.]+`, or leave the quantize step out"):
            work()
    load_checkpoint(plain)


@pytest.mark.slow
def test_a_process_without_torchao_loads_plain_models_only(make):
    _, plain, folder = make()
    code = (
        "import sys; sys.modules['torchao'] = None\n"
        "from pathlib import Path; from copra.models.checkpoint import load_checkpoint\n"
        "load_checkpoint(Path(sys.argv[1])); load_checkpoint(Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, plain, folder], capture_output=True, text=True)
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("copra.utils.errors.CopraError: int8 weights need torchao")


@torch.no_grad()
def test_the_comparison_is_that_of_a_plain_loop(make_model):
    before, after = make_model("llama", double=False), make_model("copra_llama", double=False)
    samples = [
        Sample("a", [1, 2, 3, 4, 5], [-100, -100, 3, 4, 5], 0, 0),
        Sample("b", [6, 7, 8], [-100, 7, 8], 0, 0),
        Sample("c", [9, 8, 7, 6], [-100, -100, -100, 6], 0, 0),
    ]
    largest, losses = 0.0, {before: [], after: []}
    for sample in samples:
        logits = {model: model(torch.tensor([sample.tokens])).logits[0] for model in losses}
        largest = max(largest, float((logits[before] - logits[after]).abs().max()))
        for model, found in losses.items():
            for position, label in enumerate(sample.labels[1:]):
                if label != -100:
                    found.append(-float(logits[model][position].log_softmax(-1)[label]))
    batches = [collate(samples[:2], 0), collate(samples[2:], 0)]
    read: list[tuple[int, ...]] = []
    handle = after.lm_head.register_forward_hook(lambda _, __, logits: read.append(tuple(logits.shape[:2])))
    found = compare(before, after, batches)
    handle.remove()
    # Logits of one row at a time, without padding.
    assert read == [(1, len(sample.tokens)) for sample in samples]
    assert found["largest_logit_difference"] == pytest.approx(largest, rel=1e-4)
    assert found["loss_before"] == pytest.approx(sum(losses[before]) / 6, rel=1e-4)
    assert found["loss_after"] == pytest.approx(sum(losses[after]) / 6, rel=1e-4)
    after.get_input_embeddings().weight[6] = math.nan
    with pytest.raises(CopraError, match="not a finite number"):
        compare(before, after, batches)
