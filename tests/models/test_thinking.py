"""Checkpoints answer in a process without copra as they answer with it, or refuse to load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from thinking_models import SPECS, made

from copra.generation.decode import decode
from copra.models import portable
from copra.models.anatomy import blocks
from copra.models.bases import make_base
from copra.models.checkpoint import save_checkpoint
from copra.models.portable import CODE, answers_plainly
from copra.models.quantized import quantize
from copra.models.visits import LoopedLayers
from copra.schema.base import Base
from helpers.manifests import provenance

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [3]]
LIMIT = 8

OUTSIDE = """
import json, sys
sys.modules["copra"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, pipeline
prompts, limit = json.load(open("asked.json"))
longest = max(map(len, prompts))
ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
found = {}

class Third(StoppingCriteria):
    # Ends all answers at their third token; the shapes that it sees are those without latents.
    def __call__(self, seen, scores, **_):
        self.seen = seen[:, longest:].tolist()
        return torch.full((len(seen),), seen.shape[1] - longest >= 3)

for name in json.load(open("names.json")):
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
    mine = model.generate(ids, attention_mask=mask, max_new_tokens=limit, **options)
    assert torch.equal(mine[:, :longest], ids)
    by_length = model.generate(input_ids=ids, attention_mask=mask, max_length=longest + limit, **options)
    assert torch.equal(by_length, mine), name
    third = Third()
    stopped = model.generate(
        ids, attention_mask=mask, max_new_tokens=limit, stopping_criteria=[third], **options
    )
    assert torch.equal(stopped, mine[:, : longest + 3]), name
    assert third.seen == stopped[:, longest:].tolist()
    whole = model.generate(
        ids, attention_mask=mask, max_new_tokens=limit, return_dict_in_generate=True, **options
    )
    assert torch.equal(whole.sequences, mine), name
    static = model.generate(
        ids, attention_mask=mask, max_new_tokens=limit, cache_implementation="static", **options
    ) if name not in json.load(open("no_static.json")) else mine
    assert torch.equal(static, mine), name
    beams = model.generate(ids, attention_mask=mask, max_new_tokens=limit, num_beams=2, **options)
    assert beams.shape[0] == len(ids)
    model.save_pretrained(name + "-again")
    again = AutoModelForCausalLM.from_pretrained(name + "-again", trust_remote_code=True).eval()
    assert torch.equal(again.generate(ids, attention_mask=mask, max_new_tokens=limit, **options), mine), name
    found[name] = mine[:, longest:].tolist()
tokenizer = AutoTokenizer.from_pretrained("hidden", trust_remote_code=True)
ask = pipeline("text-generation", model="hidden", tokenizer=tokenizer, trust_remote_code=True)
text = tokenizer.decode(prompts[0])
(said,) = ask(text, do_sample=False, max_new_tokens=limit, return_full_text=False)
found["pipeline"] = said["generated_text"]
try:
    model.generate(ids.flip(1), attention_mask=mask.flip(1))
except ValueError as error:
    found["right"] = str(error)
assert not [name for name in sys.modules if name.startswith("copra.")]
json.dump(found, open("found.json", "w"))
"""


def answered(checkpoint, spec, prompts=PROMPTS):
    """Return what copra answers to the prompts."""
    answers = decode(
        checkpoint.model,
        prompts,
        spec,
        stop=1,
        pad=0,
        max_new_tokens=LIMIT,
        batch_size=len(prompts),
        extra_modules=checkpoint.extra_modules,
    )
    return [answer.tokens for answer in answers]


def until_end(tokens):
    return tokens[: tokens.index(1) + 1] if 1 in tokens else tokens


@pytest.mark.parametrize(
    "kind",
    ["copra_llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "gpt2"))],
)
def test_models_answer_elsewhere_as_they_answer_here(make_model, word_tokenizer, tmp_path, kind):
    expected, loaded = {}, {}
    names = [name for name, spec in SPECS.items() if not answers_plainly(spec)]
    for name in names:
        checkpoint = made(make_model, word_tokenizer, tmp_path / name, kind, SPECS[name])
        expected[name] = answered(checkpoint, SPECS[name])
        loaded[name] = checkpoint
    # The specs differ in what they answer, so that a model that left its latents out would be found.
    plain = answered(loaded["hidden"], None)
    assert all(expected[name] != plain for name in names)
    (tmp_path / "asked.json").write_text(json.dumps([PROMPTS, LIMIT]))
    (tmp_path / "names.json").write_text(json.dumps(names))
    # Positions cannot be taken out of a static cache.
    without = [name for name in names if "jacobi" in name]
    (tmp_path / "no_static.json").write_text(json.dumps(without))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: list(map(until_end, found[name])) for name in names} == expected
    alone = until_end(answered(loaded["hidden"], SPECS["hidden"], PROMPTS[:1])[0])
    assert found["pipeline"] == word_tokenizer.decode(alone, skip_special_tokens=True)
    assert "pad them on the left" in found["right"]


def test_without_trust_a_model_that_thinks_does_not_load(make_model, word_tokenizer, tmp_path):
    made(make_model, word_tokenizer, tmp_path / "thinks", "llama", SPECS["hidden"])
    made(make_model, word_tokenizer, tmp_path / "plain", "llama", SPECS["no thought"])
    load = (
        "import sys; sys.modules['copra'] = None; from transformers import AutoModelForCausalLM; "
        "AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    for name, status in (("thinks", 1), ("plain", 0)):
        command = [sys.executable, "-c", load, str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr[-2000:]
        assert ("trust_remote_code=True" in done.stderr) == bool(status)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "copra_llama", "copra_gpt2"])
@pytest.mark.parametrize("name", ["hidden", "looped"])
def test_here_a_marked_checkpoint_is_the_model_that_was_saved(
    make_model, word_tokenizer, tmp_path, kind, name
):
    model = make_model(kind, double=False)
    before = model.config.to_dict()
    checkpoint = made(make_model, word_tokenizer, tmp_path / "model", kind, SPECS[name])
    assert type(checkpoint.model) is type(model)
    assert isinstance(blocks(checkpoint.model), LoopedLayers) == (name == "looped")
    if name == "hidden":
        after = checkpoint.model.config.to_dict()
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        assert changed <= {"_name_or_path", "architectures", "dtype", "transformers_version", "auto_map"}
    for (key, old), (also, new) in zip(
        model.state_dict().items(), checkpoint.model.state_dict().items(), strict=True
    ):
        assert key == also
        assert torch.equal(old.cpu(), new.cpu())
    # The files of a marked checkpoint are sealed like all others.
    assert set(CODE) <= set(checkpoint.manifest.files)
    # What is made of it may answer plainly again.
    save_checkpoint(tmp_path / "next", checkpoint.model, word_tokenizer, provenance())
    config = json.loads((tmp_path / "next" / "config.json").read_text())
    assert config.get("thinking") is None
    assert ("auto_map" in config) == kind.startswith("copra")


@pytest.mark.parametrize("kind", ["llama", "copra_gpt2"])
def test_a_checkpoint_that_thinks_can_be_a_base_or_quantized(make_model, word_tokenizer, tmp_path, kind):
    """Both as the ordinary model: a base has not learned to think, and int8 weights think by the manifest."""
    checkpoint = made(make_model, word_tokenizer, tmp_path / "model", kind, SPECS["looped hidden"])
    base, _ = make_base(Base(path=str(tmp_path / "model")), [], 0)
    assert getattr(base.config, "thinking", None) is None
    assert len(blocks(base)) == 3
    if kind == "llama":
        assert type(base).__name__ == "LlamaForCausalLM"
        assert len(blocks(quantize(tmp_path / "model"))) == 3
    weights = checkpoint.model.state_dict()
    assert all(torch.equal(weight, weights[key].cpu()) for key, weight in base.state_dict().items())


def test_the_files_that_travel_import_only_libraries_and_each_other():
    for name in CODE:
        text = Path(portable.__file__).with_name(name).read_text()
        lines = [line.split()[1] for line in text.splitlines() if line.startswith(("from ", "import "))]
        own = {line.removeprefix(".") + ".py" for line in lines if line.startswith(".")}
        assert own <= set(CODE)
        assert not any(line.startswith("copra") for line in lines)
