from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.models.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from copra.models.manifest import Manifest
from copra.models.per_layer import CopraLlamaForCausalLM
from copra.models.shape import shape_of
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, file_sha256, read_sealed_json, write_sealed_json
from helpers.manifests import provenance


@pytest.fixture
def save(make_model, word_tokenizer, tmp_path):
    """Saves a tiny model in a folder of that name; returns the folder and the model."""

    def save(kind: str, name: str = "model", **changes):
        model = make_model(kind, len(word_tokenizer), double=False, **changes)
        save_checkpoint(tmp_path / name, model, word_tokenizer, provenance("a+b"), {"notes.txt": "text"})
        return tmp_path / name, model

    return save


@pytest.mark.parametrize("kind", ["llama", "gpt2", "copra_llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_loaded_is_what_was_saved(save, word_tokenizer, kind, tied):
    folder, model = save(kind, tied=tied)
    again = load_checkpoint(folder)
    state, found = model.state_dict(), again.model.state_dict()
    assert set(state) == set(found)
    assert all(torch.equal(state[name], found[name].cpu()) for name in state)
    input_ids = torch.arange(1, 15)[None]
    found, expected = again.model(input_ids.to(again.model.device)).logits.cpu(), model(input_ids).logits
    # Another device adds up in another order.
    assert torch.allclose(found, expected, rtol=0, atol=0 if again.model.device.type == "cpu" else 1e-3)
    assert not again.model.training
    shared = again.model.get_input_embeddings().weight is again.model.get_output_embeddings().weight
    assert shared == tied
    assert again.tokenizer.get_vocab() == word_tokenizer.get_vocab()
    assert markers_of(again.tokenizer) == markers_of(word_tokenizer)
    assert (again.tokenizer.eos_token_id, again.tokenizer.pad_token_id) == (
        word_tokenizer.eos_token_id,
        word_tokenizer.pad_token_id,
    )
    assert again.shape == shape_of(model.config.to_dict()) == again.manifest.shape


def test_unequal_layers_come_back_unequal(save):
    folder, _ = save("copra_llama")
    again = load_checkpoint(folder)
    assert isinstance(again.model, CopraLlamaForCausalLM)
    assert [(layer.query_heads, layer.kv_heads, layer.ffn) for layer in again.shape.layers] == [
        (2, 1, 24),
        (6, 3, 40),
        (4, 2, 40),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_of_the_weights_is_kept(make_model, word_tokenizer, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda: True)
    model = make_model("llama", len(word_tokenizer), double=False).to(dtype)
    save_checkpoint(tmp_path / "model", model, word_tokenizer, provenance())
    again = load_checkpoint(tmp_path / "model")
    assert {parameter.dtype for parameter in again.model.parameters()} == {dtype}
    assert again.manifest.weights.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "copra_llama"])
def test_equal_runs_write_equal_folders(save, kind):
    first, _ = save(kind, "first")
    second, _ = save(kind, "second")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert {MANIFEST, WEIGHTS, "config.json", "tokenizer.json", "notes.txt"} <= set(names)
    for name in names:
        if (first / name).is_file():
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_manifest_is_completed(save):
    folder, model = save("gpt2")
    manifest = Manifest.read(folder)
    assert manifest.node == "a+b"
    assert manifest.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert manifest.weights.bytes == (folder / WEIGHTS).stat().st_size
    assert manifest.versions["torch"] in torch.__version__
    assert (folder / "notes.txt").read_text() == "text"


def truncated(data: bytes) -> bytes:
    return data[:-1]


def edited(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("change", [truncated, edited, empty])
@pytest.mark.parametrize("kind", ["llama", "copra_llama"])
def test_weights_that_are_not_the_saved_ones_are_refused(save, kind, change):
    folder, _ = save(kind)
    weights = folder / WEIGHTS
    weights.write_bytes(change(weights.read_bytes()))
    with pytest.raises(CopraError, match=f"^{weights}: .*checksum.*Delete {folder}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, "config.json"])
def test_a_missing_file_is_named(save, name):
    folder, _ = save("llama")
    (folder / name).unlink()
    with pytest.raises(CopraError, match=str(folder / (name if name != "config.json" else ""))):
        load_checkpoint(folder)


def test_saving_replaces_the_folder_whole(save, word_tokenizer):
    folder, _ = save("copra_llama")
    (folder / "old.txt").write_text("old")
    folder, model = save("llama")
    assert not (folder / "old.txt").exists()
    assert type(load_checkpoint(folder).model) is type(model)


def test_a_failed_save_leaves_what_was_there(save, word_tokenizer, make_model):
    folder, _ = save("llama")
    before = (folder / WEIGHTS).read_bytes()
    other = make_model("gpt2", len(word_tokenizer), double=False)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(folder, other, word_tokenizer, provenance(training_flops=float("nan")))
    assert (folder / WEIGHTS).read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    load_checkpoint(folder)


def test_bfloat16_weights_are_computed_with_in_float32_where_the_device_has_none(
    tmp_path, make_model, word_tokenizer, monkeypatch
):
    known = provenance(base={"dtype": "bfloat16"})
    model = make_model("llama", len(word_tokenizer), double=False)
    save_checkpoint(tmp_path / "first", model, word_tokenizer, known)
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda has=has: has)
        loaded = load_checkpoint(tmp_path / "first")
        assert loaded.model.dtype == dtype
        assert loaded.manifest.weights.dtype == "bfloat16"
        save_checkpoint(tmp_path / "again", loaded.model, loaded.tokenizer, known)
        again = load_checkpoint(tmp_path / "again").manifest.weights
        assert again == loaded.manifest.weights, "a round through float32 must change no weight"


def test_a_checkpoint_whose_weights_are_not_those_of_its_config_is_refused(save):
    """Though its manifest agrees with the file, as when another program wrote both."""
    folder, _ = save("llama")
    weights = load_file(folder / WEIGHTS)
    weights.pop("model.norm.weight")
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    manifest = read_sealed_json(folder / MANIFEST)
    manifest["weights"]["sha256"] = manifest["files"][WEIGHTS] = file_sha256(folder / WEIGHTS)
    write_sealed_json(folder / MANIFEST, manifest)
    with pytest.raises(CopraError, match=rf"^{folder}: .* 1 \(model\.norm\.weight\) is missing"):
        load_checkpoint(folder)


def test_an_answer_with_markers_or_latents_reads_the_markers():
    words = GenerationSpec((), 0, "hidden", 48, ())
    others = replace(words, prefix_ids=(7,)), replace(words, latents=2)
    assert [spec.reads_markers for spec in (words, *others)] == [False, True, True]
