"""Parts of a method in checkpoints: written, read, carried on, and refused where they are not whole."""

import json

import pytest
import torch
from torch import nn

from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import (
    EXTRA_MODULES_FILE,
    WEIGHTS,
    answering_modules,
    load_checkpoint,
    relabel_checkpoint,
    save_checkpoint,
)
from copra.models.extra_modules import make_extra_modules, module_type
from copra.utils import plugins
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, file_sha256
from helpers.lab import install
from helpers.manifests import provenance

WANTED = {"projection": {}, "mind_reader": {}, "emulator": {}, "step_decoder": {"layers": 2}}
BASE = provenance()


@pytest.fixture
def save_parts(make_model, word_tokenizer, tmp_path):
    """Saves a tiny model with extra modules, whose weights are all drawn anew; returns the folder and
    the extra_modules."""

    def save_parts(kind: str = "llama", wanted=WANTED, name="model", *, known=BASE, **changes):
        dtype = changes.pop("dtype", torch.float32)
        model = make_model(kind, len(word_tokenizer), double=False, **changes).to(dtype)
        torch.manual_seed(3)
        extra_modules = make_extra_modules(model, wanted)
        with torch.no_grad():
            for parameter in extra_modules.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        extra = {"training.jsonl": "log"}
        save_checkpoint(tmp_path / name, model, word_tokenizer, known, extra, extra_modules, wanted)
        return tmp_path / name, extra_modules

    return save_parts


def same_extra_modules(first, second) -> bool:
    """Bit for bit, names and types too."""
    first, second = first.state_dict(), second.state_dict()
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name].cpu(), second[name].cpu())
        for name in first
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "copra_llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_parts_come_back_bit_for_bit(save_parts, kind, tied):
    folder, extra_modules = save_parts(kind, tied=tied)
    again = load_checkpoint(folder)
    assert same_extra_modules(again.extra_modules, extra_modules)
    assert {name: part.settings for name, part in again.extra_modules.items()} == WANTED
    assert not any(module.training for module in again.extra_modules.modules())


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_parts_of_a_bfloat16_model_are_kept_in_it(save_parts, monkeypatch, has_bfloat16):
    monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda: has_bfloat16)
    folder, extra_modules = save_parts(dtype=torch.bfloat16, known=provenance(base={"dtype": "bfloat16"}))
    again = load_checkpoint(folder)
    assert {p.dtype for p in again.extra_modules.parameters()} == {again.model.dtype}
    assert again.model.dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
    assert same_extra_modules(again.extra_modules.to(torch.bfloat16), extra_modules)


def test_the_manifest_describes_the_parts(save_parts):
    folder, extra_modules = save_parts()
    described = json.loads((folder / MANIFEST).read_text())["extra_modules"]
    assert described == {
        "settings": WANTED,
        "parameters": {
            name: sum(p.numel() for p in each.parameters()) for name, each in extra_modules.items()
        },
        "bytes": (folder / EXTRA_MODULES_FILE).stat().st_size,
        "sha256": file_sha256(folder / EXTRA_MODULES_FILE),
    }
    # The language model's own weights are counted apart, and in a file that any other program loads.
    again = load_checkpoint(folder)
    assert again.manifest.parameters == sum(p.numel() for p in again.model.parameters())
    assert type(again.model).from_pretrained(folder).num_parameters() == again.manifest.parameters


def test_without_parts_there_is_no_file_of_them(save_parts):
    folder, _ = save_parts(wanted={})
    assert not (folder / EXTRA_MODULES_FILE).exists()
    again = load_checkpoint(folder)
    assert again.manifest.extra_modules is None
    assert len(again.extra_modules) == 0


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""],
    ids=["truncated", "edited", "empty"],
)
def test_parts_that_are_not_the_saved_ones_are_refused(save_parts, change):
    folder, _ = save_parts()
    file = folder / EXTRA_MODULES_FILE
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CopraError, match=f"^{file}: .*checksum.*Delete {folder}"):
        load_checkpoint(folder)


def test_missing_parts_are_named(save_parts):
    folder, _ = save_parts()
    (folder / EXTRA_MODULES_FILE).unlink()
    with pytest.raises(CopraError, match=f"^{folder / EXTRA_MODULES_FILE}: no such file. Delete {folder}"):
        load_checkpoint(folder)


def test_equal_parts_give_equal_files(save_parts):
    folder, _ = save_parts()
    first = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    save_parts()
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == first


def test_the_next_stage_goes_on_with_the_parts_that_it_wants(save_parts, word_tokenizer, tmp_path):
    """A part that is not wanted any more goes, and does not come back in the stage after."""
    folder, saved = save_parts()
    parent = load_checkpoint(folder)
    wanted = {"step_decoder": {"layers": 2}, "projection": {}}
    extra_modules = make_extra_modules(parent.model, wanted, parent.extra_modules)
    assert [extra_modules[name] is parent.extra_modules[name] for name in wanted] == [True, True]
    save_checkpoint(
        tmp_path / "next", parent.model, word_tokenizer, parent.manifest, None, extra_modules, wanted
    )
    again = load_checkpoint(tmp_path / "next")
    assert again.manifest.extra_modules.settings == wanted
    for name in wanted:
        assert same_extra_modules(again.extra_modules[name], saved[name])
    # Other settings make another part.
    torch.manual_seed(3)
    other = make_extra_modules(again.model, {"step_decoder": {"layers": 1}}, again.extra_modules)
    assert not torch.equal(
        other["step_decoder"].body.get_parameter("norm.weight").cpu(),
        saved["step_decoder"].body.get_parameter("norm.weight"),
    )


@pytest.mark.slow
def test_only_parts_that_an_answer_needs_are_answering(save_parts):
    ways = {
        (): GenerationSpec((), 0, "hidden", 48, ()),
        ("projection",): GenerationSpec((47,), 3, "hidden", 48, (49,), "projected"),
        ("mind_reader", "emulator"): GenerationSpec((), 0, "hidden", 48, (), emulated=True),
    }
    for names, decoding in ways.items():
        folder, _ = save_parts(known=provenance(decoding=decoding))
        checkpoint = load_checkpoint(folder)
        answering = answering_modules(checkpoint)
        assert tuple(answering) == names
        assert all(answering[name] is checkpoint.extra_modules[name] for name in names)
        # An evaluation loads no others.
        found = load_checkpoint(folder, to_answer=True).extra_modules
        assert tuple(found) == names
        assert all(same_extra_modules(found[name], answering[name]) for name in names)
    folder, _ = save_parts()
    assert len(answering_modules(load_checkpoint(folder))) == 0
    assert len(load_checkpoint(folder, to_answer=True).extra_modules) == 0


def test_a_checkpoint_under_another_manifest(save_parts, tmp_path):
    folder, extra_modules = save_parts(known=provenance("a", method="cot", seed=3))
    decoding = GenerationSpec((), 0, "hidden", 48, ())
    known = provenance("a+b", method="few_shot", decoding=decoding, seed=3)
    relabel_checkpoint(folder, tmp_path / "again", known)
    before, after = load_checkpoint(folder), load_checkpoint(tmp_path / "again")
    files = {name: sum for name, sum in before.manifest.files.items() if name != "training.jsonl"}
    assert after.manifest == before.manifest.model_copy(update={**dict(known), "files": files})
    # All but the log of the training, which was the parent's.
    left_out = {"training.jsonl", MANIFEST}
    names = {file.name for file in folder.iterdir()} - left_out
    assert {WEIGHTS, EXTRA_MODULES_FILE, "config.json", "tokenizer.json"} <= names
    assert {file.name for file in (tmp_path / "again").iterdir()} == names | {MANIFEST}
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert same_extra_modules(after.extra_modules, extra_modules)


def test_a_relabelled_folder_is_replaced_whole(save_parts, tmp_path):
    folder, _ = save_parts()
    other, _ = save_parts("gpt2", name="other")
    (other / "old.txt").write_text("old")
    relabel_checkpoint(folder, other, provenance("new"))
    assert not (other / "old.txt").exists()
    assert load_checkpoint(other).shape.family == "llama"
    with pytest.raises(CopraError, match=f"^{tmp_path / 'nowhere' / MANIFEST}: no such file"):
        relabel_checkpoint(tmp_path / "nowhere", other, provenance())
    assert load_checkpoint(other).manifest.node == "new"


def test_modules_of_other_packages_are_found_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("COPRA_PLUGINS", "on")
    monkeypatch.syspath_prepend(tmp_path)
    code = "from torch import nn\nclass Probe(nn.Linear):\n"
    code += "    def __init__(self, model, size): super().__init__(4, size)\n"
    entries = {"probe": "lab_modules:Probe", "other": "lab_modules:nn"}
    install(tmp_path, {"copra.extra_modules": entries}, code, "lab_modules")
    plugins._entry_points.cache_clear()
    model = nn.Linear(1, 1)
    model.device, model.dtype = "cpu", torch.float64
    made = make_extra_modules(model, {"probe": {"size": 3}})
    assert (made["probe"].out_features, made["probe"].weight.dtype) == (3, torch.float64)
    with pytest.raises(
        CopraError, match=r"other .* of the installed package copra-lab .* is no subclass of torch"
    ):
        module_type("other")
    monkeypatch.setenv("COPRA_PLUGINS", "off")
    plugins._entry_points.cache_clear()
    with pytest.raises(CopraError, match=r"'probe', which is not known\. Install the package"):
        make_extra_modules(model, {"probe": {"size": 3}})
