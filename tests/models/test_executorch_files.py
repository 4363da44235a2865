"""Checkpoints as programs of ExecuTorch: the methods in PyTorch, and folders in ExecuTorch's own runtime."""

import importlib.util
import sys
from functools import partial

import pytest
import torch
from transformers import AttentionInterface

from copra.cli import main
from copra.generation.executorch import ExecutorchModel
from copra.models.checkpoint import load_checkpoint
from copra.models.executorch_file import (
    ATTENTION,
    DECODING,
    PROGRAM,
    Embed,
    Step,
    description,
    grouped_attention,
    write_executorch,
)
from copra.models.logits import SUPPRESSED
from copra.pruning.cut import KeptUnits
from copra.utils.errors import CopraError
from copra.utils.files import read_json, write_json
from helpers.copied_code import ROOT
from helpers.exported import QUESTIONS, assert_same_tokens, latents, looped, make_checkpoint, plain
from helpers.plugins import plugin_folders

# One layer without a KV group, one with fewer neurons: to export a layer takes seconds.
CUT = KeptUnits((0, 1), ((0, 1), None), (None, tuple(range(32))))
LENGTH = 96
KINDS = ("llama", "copra_llama", "gpt2", "copra_gpt2")
# This warning's class is ExecuTorch's own, so pytest-xdist's main process, without it, cannot load it.
pytestmark = pytest.mark.filterwarnings("ignore:This API is experimental")


@pytest.fixture
def make(rows, tmp_path):
    """Makes a checkpoint with large random weights, of a decoding and with a cut."""
    return partial(make_checkpoint, tmp_path / "model", rows, layers=2)


@pytest.fixture(scope="module")
def executorch(request):
    """ExecuTorch, fetched where it is not installed; skips the test where it cannot be."""
    cache = request.config.cache.mkdir("executorch")
    folders = plugin_folders(["executorch"], ROOT / "requirements-executorch.lock", cache)
    sys.path += folders
    yield
    # What was imported stays.
    sys.path[:] = [path for path in sys.path if path not in folders]


@pytest.fixture(scope="module")
def write(executorch, rows, tmp_path_factory):
    """Writes the folder of a type of weights, once, beside its checkpoint."""
    made = {}

    def write(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("executorch")
            make_checkpoint(folder / "model", rows, latents(2, "scaled"), cut=CUT, layers=2)
            names = [str(folder / "model"), str(folder / "phone")]
            assert main(["executorch", *names, "--type", kind, "--max-length", str(LENGTH)]) == 0
            made[kind] = folder
        return made[kind]

    return write


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(), (6,), (1, 4), range(1, 11)])
def test_steps_of_any_lengths_give_the_states_and_logits_of_the_model(make_model, kind, cuts):
    model = make_model(kind, double=False)
    model.generation_config.suppress_tokens = [47, 48]
    ids = torch.randint(1, 47, (11,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(ids[None], output_hidden_states=True)
    AttentionInterface.register(ATTENTION, grouped_attention)
    model.set_attn_implementation(ATTENTION)
    embed, step = Embed(model), Step(model, 16)
    with torch.no_grad():
        # What another question left in the cache counts for nothing.
        step(embed(ids.flip(0)), torch.arange(11))
        for places in torch.arange(11).tensor_split(list(cuts)):
            state, logits = step(embed(ids[places]), places)
            last = places[-1]
            torch.testing.assert_close(state[0], expected.hidden_states[-1][0, last], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(logits[0, :47], expected.logits[0, last, :47], rtol=1e-4, atol=1e-4)
    assert logits[0, 47:49].tolist() == [SUPPRESSED] * 2
    assert expected.logits.abs().max() > 1


def test_a_description_has_all_that_a_caller_needs(make):
    checkpoint = make(latents(2, "scaled"))
    found, spec = description(checkpoint, "int8", 96), checkpoint.decoding
    norms = checkpoint.model.get_input_embeddings().weight.detach().norm(dim=-1)
    assert found.pop("norm") == pytest.approx(float(norms.mean()), rel=1e-6)
    assert found == {
        "node": "llama@0+x",
        "type": "int8",
        "max_length": 96,
        "start_ids": [],
        "end_ids": [checkpoint.tokenizer.eos_token_id],
        "prefix_ids": list(spec.prefix_ids),
        "latents": 2,
        "latent_token": spec.latent_token,
        "suffix_ids": list(spec.suffix_ids),
        "feed": "scaled",
    }


@pytest.mark.parametrize(("positions", "length"), [(64, 64), (2048, 512)])
def test_the_cache_has_512_positions_or_those_of_the_model(make, positions, length):
    checkpoint = make(plain, max_position_embeddings=positions)
    assert description(checkpoint, "f32", None)["max_length"] == length


@pytest.mark.parametrize(
    ("spec", "sizes", "kind", "length", "message"),
    [
        (plain, {"architecture": "gpt2", "kv_heads": None}, "int8", None, "int8 needs linear layers"),
        (plain, {}, "f32", 10**6, "--max-length 1000000: must be from 2 to"),
        (plain, {}, "f32", 1, "--max-length 1: must be from 2 to"),
        (
            latents(2, iterations=1),
            {},
            "f32",
            None,
            "with Jacobi iterations, for which ExecuTorch has no form",
        ),
        (looped, {}, "f32", None, "answers with a loop over its layers"),
    ],
)
def test_what_has_no_form_is_refused(make, spec, sizes, kind, length, message):
    with pytest.raises(CopraError, match=message):
        description(make(spec, **sizes), kind, length)


def test_the_command_names_the_package_that_is_missing(make, tmp_path, monkeypatch, capsys):
    make(plain)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "executorch" else find(name, *more)
    )
    assert main(["executorch", str(tmp_path / "model"), str(tmp_path / "phone")]) == 1
    assert "pip install 'executorch" in capsys.readouterr().err
    with pytest.raises(CopraError, match="pip install 'executorch"):
        ExecutorchModel(tmp_path / "phone")
    assert not (tmp_path / "phone").exists()


@pytest.mark.slow
def test_what_fails_leaves_nothing(executorch, make, tmp_path, monkeypatch):
    checkpoint = make(plain)

    def fail(*arguments):
        raise ValueError("no program")

    monkeypatch.setattr("copra.models.executorch_file._program", fail)
    with pytest.raises(ValueError, match="no program"):
        write_executorch(checkpoint, tmp_path / "phone")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        plain,
        latents(3),
        latents(3, "scaled"),
        latents(2, thought="embedding"),
        latents(0),
    ],
)
def test_executorch_writes_the_same_tokens(make, write, tmp_path, spec):
    checkpoint = make(spec, cut=CUT)
    # The program is the same whatever the decoding.
    write_json(write("f32") / "phone" / DECODING, description(checkpoint, "f32", LENGTH))
    assert_same_tokens(checkpoint, ExecutorchModel(write("f32") / "phone"), QUESTIONS, 24)


@pytest.mark.slow
def test_an_answer_ends_where_the_cache_is_full(make, write):
    phone, checkpoint = write("f32") / "phone", make(plain, cut=CUT)
    write_json(phone / DECODING, description(checkpoint, "f32", LENGTH) | {"end_ids": []})
    model = ExecutorchModel(phone)
    prompt = checkpoint.tokenizer(QUESTIONS[0])["input_ids"]
    assert len(model.generate(prompt, 10**6)) == LENGTH - len(prompt) + 1
    with pytest.raises(CopraError, match=f"takes {LENGTH + 1} positions, and the program has {LENGTH}"):
        model.generate(prompt[:1] * (LENGTH + 1))


@pytest.mark.slow
def test_weights_of_8_bits_are_near(write):
    from executorch.runtime import Runtime

    folder = write("int8")
    assert read_json(folder / "phone" / DECODING)["type"] == "int8"
    model = load_checkpoint(folder / "model").model
    ids = torch.arange(3, 12)
    with torch.no_grad():
        expected = model(ids[None]).logits[:, -1]
    program = Runtime.get().load_program(folder / "phone" / PROGRAM)
    embeddings = program.load_method("embed").execute([ids])[0]
    _, logits = program.load_method("step").execute([embeddings, torch.arange(9)])
    assert 0 < (logits - expected)[expected > SUPPRESSED].std() < 0.1 * expected[expected > SUPPRESSED].std()


@pytest.mark.slow
def test_the_folder_that_the_command_writes(write, capsys):
    folder = write("f32")
    names = {path.name for path in (folder / "phone").iterdir()}
    assert {PROGRAM, DECODING, "tokenizer.json", "tokenizer_config.json"} <= names
    assert main(["executorch", str(folder / "model"), str(folder / "phone")]) == 1
    assert "is there already" in capsys.readouterr().err
