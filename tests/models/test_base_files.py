"""What file names and config.json tell of a base; all folders are made here, without a model."""

import importlib.util
import json
import re
import types

import pytest

from copra.models.base_files import absence_problem, base_problem
from copra.schema.base import Base
from copra.utils.errors import CopraError

WHOLE = {"config.json": {"model_type": "llama"}, "model.safetensors": "", "tokenizer.json": {}}


@pytest.fixture
def problem_of(tmp_path):
    """The problem of a folder with these files, told of its absolute path."""

    def problem(name="base", **files):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        found = base_problem(Base(path=str(folder)))
        return found and found.removeprefix(f"path: {str(folder)!r} ")

    return problem


def quantized(key, **settings):
    return {"config.json": {key: settings}}


def sharded(index):
    return {"model.safetensors": None, "a.safetensors": "", "model.safetensors.index.json": index}


def test_a_whole_folder_has_no_problem(problem_of):
    assert problem_of("größe mit leer 模型", **WHOLE) is None
    assert problem_of("sentencepiece", **WHOLE | {"tokenizer.json": "", "tokenizer.model": ""}) is None
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = dict.fromkeys(index["weight_map"].values(), "")
    files = {name: value for name, value in WHOLE.items() if name != "model.safetensors"}
    assert problem_of("sharded", **files, **shards, **{"model.safetensors.index.json": index}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config.json": None}, r"^has no config\.json\. Give a folder in Hugging Face form"),
        ({"config.json": None, "a b.gguf": ""}, r"^has no config\.json\. .* name it: path: /.*/a b\.gguf\."),
        ({"config.json": None, "rest.tar": "", "copra.json": {}}, r"tar xf rest\.tar in /"),
        ({"config.json": "{"}, r"^has a config\.json that cannot be read \(Expecting"),
        ({"config.json": []}, r"^has a config\.json that cannot be read \(not a mapping"),
        ({"adapter_config.json": {}}, r"^is a LoRA adapter .*merge_and_unload"),
        (quantized("quantization_config", quant_method="gptq"), r"^has weights quantized by gptq"),
        (quantized("compression_config", quant_method="compressed-tensors"), r"by compressed-tensors"),
        (quantized("quantization_config", load_in_4bit=True), r"by an unnamed method"),
        ({"model.safetensors": None}, r"^has no weights"),
        ({"model.safetensors": None, "pytorch_model.bin": ""}, r"^has its weights in pytorch_model\.bin"),
        ({"tokenizer.json": None}, r"^has no tokenizer"),
        (
            sharded({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}),
            r"^lacks 1 of 2 shards \(b\.safetensors\)",
        ),
        (sharded([]), r"index\.json that cannot be read"),
    ],
)
def test_what_a_folder_lacks_is_said_in_one_line(problem_of, changes, message):
    problem = problem_of(**{name: text for name, text in (WHOLE | changes).items() if text is not None})
    assert re.search(message, problem)
    assert "\n" not in problem
    assert problem.endswith((".", '".'))


def test_a_gguf_file_needs_its_package(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    base = Base(path=str(file))
    assert base.gguf == file
    found = types.SimpleNamespace(origin=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert base_problem(base) is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (
        base_problem(base)
        == "path: 'model.gguf' is a GGUF file, which needs the package gguf. Run pip install gguf."
    )
    found.origin = "gguf/__init__.py"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert base_problem(base) is None


def test_another_file_is_no_base(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    assert re.search(r"is a file\. Give the folder", base_problem(Base(path=str(file))))


def test_what_is_not_there_is_judged_when_it_is_needed(tmp_path, monkeypatch):
    for path in ("gpt2", "openai-community/gpt2", "Org/Llama-3.2_1B"):
        assert base_problem(Base(path=path)) is None
        assert absence_problem(Base(path=path)) is None
    for path in (str(tmp_path / "absent"), "./absent", "a/b/c", "folder/model.gguf"):
        assert base_problem(Base(path=path)) is None
        assert re.search(r"is not there\. Give", absence_problem(Base(path=path)))
    monkeypatch.delenv("SOME_MODELS", raising=False)
    with pytest.raises(CopraError, match=r"^path: .*SOME_MODELS, which is not set"):
        absence_problem(Base(path="${SOME_MODELS}/base"))
    assert absence_problem(Base(path=str(tmp_path))) is None
