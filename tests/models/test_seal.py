"""Checkpoints that were edited: each file counts, and the message says which one it is and what to delete."""

import copy
import json
import shutil

import pytest

from copra.models.checkpoint import WEIGHTS, load_checkpoint, relabel_checkpoint, save_checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.models.pack import PACK, enable_packs
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, file_sha256, read_sealed_json, write_sealed_json
from helpers.manifests import provenance

TEMPLATES = {"default": "{{ messages }}", "plain": "{{ messages[0] }}"}
LOG = "training.jsonl"


@pytest.fixture
def save(make_model, word_tokenizer, tmp_path):
    """Saves a tiny model with a part, a log and two chat templates, one of them in a folder of
    its own."""

    def save(name: str = "model"):
        tokenizer = copy.deepcopy(word_tokenizer)
        tokenizer.chat_template = TEMPLATES
        model, wanted = make_model("llama", len(word_tokenizer), double=False), {"projection": {}}
        extra_modules, extra = make_extra_modules(model, wanted), {LOG: "log"}
        save_checkpoint(tmp_path / name, model, tokenizer, provenance(), extra, extra_modules, wanted)
        return tmp_path / name

    return save


def names_of(folder) -> list[str]:
    """All files but the manifest."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def test_every_file_is_sealed(save):
    folder = save()
    sealed = read_sealed_json(folder / MANIFEST)["files"]
    assert sealed == {name: file_sha256(folder / name) for name in names_of(folder)}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(sealed)
    assert {WEIGHTS, "extra_modules.safetensors", LOG, "additional_chat_templates/plain.jinja"} <= set(sealed)


def test_each_of_them_is_checked(save, tmp_path):
    whole = save()
    for number, name in enumerate(names_of(whole)):
        folder = shutil.copytree(whole, tmp_path / str(number))
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(CopraError, match=f"^{folder / name}: .*checksum.* Delete {folder} and run"):
            load_checkpoint(folder)
        (folder / name).unlink()
        if name != LOG:
            with pytest.raises(CopraError, match=f"^{folder / name}: no such file. Delete {folder} and run"):
                load_checkpoint(folder)
        else:
            load_checkpoint(folder)


def test_an_edited_config_is_refused(save):
    """It would load, and compute something else."""
    folder = save()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(CopraError, match=f"^{folder}/config.json: .*checksum"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "chat_template.json", "tokenizer.model", "additional_chat_templates/x.jinja"],
)
def test_a_file_that_transformers_would_read_is_refused(save, name):
    folder = save()
    (folder / name).write_text("{}")
    with pytest.raises(
        CopraError, match=f"^{folder / name}: no file of this checkpoint.* Delete it, or move"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "model.gguf", ".hidden.json", "runs/a.json"])
def test_a_file_of_the_users_own_is_left_alone(save, name):
    folder = save()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("own")
    load_checkpoint(folder)
    relabel_checkpoint(folder, folder.with_name("again"), provenance("b"))
    assert not (folder.with_name("again") / name).exists()
    load_checkpoint(folder.with_name("again"))


def test_a_checkpoint_without_seals_is_refused(save):
    folder = save()
    manifest = read_sealed_json(folder / MANIFEST)
    del manifest["files"]
    write_sealed_json(folder / MANIFEST, manifest)
    with pytest.raises(CopraError, match=rf"^{folder / MANIFEST}: is not .*\(files: .* Delete {folder}"):
        load_checkpoint(folder)


def test_an_edited_checkpoint_gets_no_other_manifest(save):
    folder = save()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CopraError, match=f"^{folder}/tokenizer_config.json: .*checksum"):
        relabel_checkpoint(folder, folder.with_name("again"), provenance("b"))
    assert not folder.with_name("again").exists()


def test_a_pack_carries_folders_too(save, tmp_path, monkeypatch):
    monkeypatch.setenv("COPRA_PACK", "0")
    enable_packs()
    folder, there = save(), tmp_path / "there"
    there.mkdir()
    for name in (MANIFEST, WEIGHTS, PACK):
        shutil.copyfile(folder / name, there / name)
    assert load_checkpoint(there).tokenizer.chat_template == TEMPLATES
    relabel_checkpoint(there, tmp_path / "again", provenance("b"))
    assert load_checkpoint(tmp_path / "again").tokenizer.chat_template == TEMPLATES


def test_checkpoints_that_differ_by_their_tokenizer_are_not_the_same(save):
    """Though their weights are: what one answered must not be taken for the other's answers."""
    one, other = save(), save("other")
    assert load_checkpoint(one).identity == load_checkpoint(other).identity
    manifest = read_sealed_json(other / MANIFEST)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text + "\n")
    manifest["files"]["tokenizer.json"] = file_sha256(other / "tokenizer.json")
    write_sealed_json(other / MANIFEST, manifest)
    assert load_checkpoint(one).identity != load_checkpoint(other).identity
