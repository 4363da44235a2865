"""Packs: what lies beside weights and manifest, in one file, where it is asked for."""

import shutil
import tarfile

import pytest
import torch

from copra.models.checkpoint import WEIGHTS, load_checkpoint, relabel_checkpoint, save_checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.models.pack import PACK, enable_packs, unpack
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST
from helpers.manifests import provenance

DECLARED = (MANIFEST, WEIGHTS, PACK)


@pytest.fixture
def save(make_model, word_tokenizer, tmp_path):
    """Saves a tiny model with unequal layers and a part; returns its folder."""

    def save(name: str = "model"):
        model = make_model("copra_llama", len(word_tokenizer), double=False)
        torch.manual_seed(1)
        wanted = {"projection": {}}
        extra = {"training.jsonl": "log"}
        extra_modules = make_extra_modules(model, wanted)
        save_checkpoint(tmp_path / name, model, word_tokenizer, provenance(), extra, extra_modules, wanted)
        return tmp_path / name

    return save


@pytest.fixture
def packing(monkeypatch):
    """Packs are asked for in this test."""
    monkeypatch.setenv("COPRA_PACK", "0")  # So that it is taken back.
    enable_packs()


def carried(folder, target):
    """What object storage brings of a checkpoint to another machine."""
    target.mkdir()
    for name in DECLARED:
        shutil.copyfile(folder / name, target / name)
    return target


def test_nobody_asked_so_there_is_no_pack(save):
    assert not (save() / PACK).exists()


def test_three_files_make_a_whole_checkpoint(save, packing, tmp_path):
    folder = save()
    with tarfile.open(folder / PACK) as tar:
        assert not {*DECLARED, "training.jsonl"} & set(tar.getnames())
    there = carried(folder, tmp_path / "there")
    before, after = load_checkpoint(folder), load_checkpoint(there)
    left = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "training.jsonl"}
    assert {path.name: path.read_bytes() for path in there.iterdir()} == left
    tokens = torch.arange(1, 15, device=before.model.device)[None]
    assert torch.equal(before.model(tokens).logits, after.model(tokens).logits)
    ones = torch.ones(1, 32, device=before.model.device)
    assert torch.equal(before.extra_modules["projection"](ones), after.extra_modules["projection"](ones))


def test_a_relabelled_checkpoint_can_be_carried_too(save, packing, tmp_path):
    there = carried(save(), tmp_path / "there")
    relabel_checkpoint(there, tmp_path / "again", provenance("b"))
    last = load_checkpoint(carried(tmp_path / "again", tmp_path / "last"))
    assert last.manifest.node == "b"
    assert list(last.extra_modules) == ["projection"]


def test_equal_checkpoints_have_equal_packs(save, packing):
    assert (save("first") / PACK).read_bytes() == (save("second") / PACK).read_bytes()


def test_files_of_an_older_checkpoint_give_way_to_the_pack(save, packing, tmp_path):
    there = carried(save(), tmp_path / "there")
    (there / "config.json").write_text("{}")
    assert len(load_checkpoint(there).shape.layers) == 3


@pytest.mark.parametrize("kept", [0, 700, -2000])
def test_a_pack_that_is_cut_short_is_named(save, packing, tmp_path, kept):
    there = carried(save(), tmp_path / "there")
    pack = there / PACK
    pack.write_bytes(pack.read_bytes().rstrip(b"\0")[:kept])
    with pytest.raises(CopraError, match=f"^{pack}: cannot be unpacked .*Delete {there}"):
        load_checkpoint(there)
    assert sorted(path.name for path in there.iterdir()) == sorted(DECLARED)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../out", tarfile.REGTYPE), ("/tmp/copra-out", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)],
)
def test_a_pack_writes_only_files_within_its_folder(tmp_path, name, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(folder / PACK, "w") as tar:
        tar.addfile(member)
    with pytest.raises(CopraError, match="which is no file of a checkpoint"):
        unpack(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", PACK]
