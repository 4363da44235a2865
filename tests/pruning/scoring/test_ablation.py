"""What a checkpoint is worth with units gone, against the same model changed by hand; and its memory."""

import json
from dataclasses import replace

import pytest
import torch
from ablations import batches_of, make_checkpoint, plain_loss, without

from copra.evaluation.accuracy import predictions
from copra.pruning.cut import KeptUnits
from copra.pruning.proof import masked
from copra.pruning.scoring import ablation as module
from copra.pruning.scoring.ablation import Ablation, Questions, applied
from copra.utils.errors import CopraError
from helpers.manifests import with_manifest

CUTS = {
    "nothing": [],
    "a layer": [("layers", 1, 1)],
    "two layers": [("layers", 0, 0), ("layers", 2, 2)],
    "a group": [("kv_groups", 0, 1)],
    "all heads of a layer": [("heads", 1, head) for head in range(4)],
    "one head": [("heads", 2, 3)],
    "neurons": [("neurons", 0, 5), ("neurons", 0, 6)],
    "some of all": [("layers", 2, 2), ("heads", 0, 1), ("heads", 0, 3), ("neurons", 1, 0)],
}


@pytest.fixture(params=[("llama", "latent"), ("gpt2", "cot")], ids=lambda param: " ".join(param))
def checkpoint(request, word_base):
    architecture, objective = request.param
    return make_checkpoint(word_base(architecture, layers=3, initializer_range=0.3), objective)


@pytest.fixture
def llama(word_base):
    return make_checkpoint(word_base(layers=3, initializer_range=0.3))


def cut_of(checkpoint, units):
    return KeptUnits.whole(checkpoint.shape).without(checkpoint.shape, units)


@pytest.mark.slow
def test_the_loss_is_that_of_a_model_changed_by_hand(checkpoint, rows, tmp_path):
    found = Ablation(checkpoint, tmp_path, batches=batches_of(checkpoint, rows[:7]))
    losses = {name: found.loss(cut_of(checkpoint, units)) for name, units in CUTS.items()}
    expected = {
        name: plain_loss(checkpoint, without(checkpoint, units), rows[:7]) for name, units in CUTS.items()
    }
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(set(losses.values())) == len(CUTS)


@pytest.mark.slow
def test_answers_are_those_of_a_model_with_the_units_masked(checkpoint, rows, tmp_path, monkeypatch):
    """An untrained model is never right, so what counts as right is a matter of what it writes."""
    monkeypatch.setattr("copra.evaluation.accuracy.extract_answer", lambda text: text)
    monkeypatch.setattr("copra.evaluation.accuracy.same_answer", lambda text, *_: len(text) % 3 == 0)
    found = Ablation(checkpoint, tmp_path, questions=Questions(rows, max_new_tokens=6))
    decoding = checkpoint.decoding
    counts = []
    for units in CUTS.values():
        cut = cut_of(checkpoint, units)
        with masked(checkpoint.model, cut):
            correct = predictions(checkpoint, decoding, rows, 6, "number")["correct"].sum()
        assert found.answers(cut) == (correct, 24)
        assert found.accuracy(cut) == correct / 24
        counts.append(correct)
    assert len(set(counts)) > 2


def test_units_really_go_where_that_is_legal(llama):
    size = sum(each.numel() for each in llama.model.parameters())
    for name, units in CUTS.items():
        with applied(llama.model, cut_of(llama, units)) as left:
            if name in ("one head", "all heads of a layer"):
                assert left is llama.model
            elif units:
                assert sum(each.numel() for each in left.parameters()) < size
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in llama.model.modules())


def test_what_is_measured_is_read_again(llama, rows, tmp_path, monkeypatch):
    cuts = [cut_of(llama, units) for units in CUTS.values()]
    options = {"batches": batches_of(llama, rows[:4]), "questions": Questions(rows[:4], max_new_tokens=4)}
    first = Ablation(llama, tmp_path, **options)
    losses, answers = [first.loss(cut) for cut in cuts], [first.answers(cut) for cut in cuts]
    monkeypatch.delattr(module, "example_losses")
    monkeypatch.delattr(module, "predictions")
    again = Ablation(llama, tmp_path, **options)
    assert [again.loss(cut) for cut in cuts] == losses
    assert [again.answers(cut) for cut in cuts] == answers
    # What is not asked for is no part of what a value depends on.
    assert Ablation(llama, tmp_path, batches=options["batches"]).loss(cuts[3]) == losses[3]
    assert Ablation(llama, tmp_path, questions=options["questions"]).answers(cuts[3]) == answers[3]


def test_each_value_is_a_line(llama, rows, tmp_path):
    found = Ablation(
        llama, tmp_path, batches=batches_of(llama, rows[:2]), questions=Questions(rows[:2], max_new_tokens=4)
    )
    cuts = [cut_of(llama, units) for units in CUTS.values()]
    values = [found.loss(cut) for cut in cuts]
    found.answers(cuts[1])
    (losses,), (answers,) = tmp_path.glob("*/loss.jsonl"), tmp_path.glob("*/accuracy.jsonl")
    lines = [json.loads(line) for line in losses.read_text().splitlines()]
    assert [line["loss"] for line in lines] == values
    assert len({line["name"] for line in lines}) == len(cuts)
    (line,) = answers.read_text().splitlines()
    assert json.loads(line) == {"name": lines[1]["name"], "correct": 0, "n": 2}


@pytest.mark.parametrize(("kept", "known"), [(1, 2), (20, 2), (-1, 2), (None, 3)])
def test_a_line_that_a_kill_cut_short_is_passed_over(llama, rows, tmp_path, kept, known):
    """Of the last line there are some bytes, all but the closing brace, or all but the line break."""
    batches = batches_of(llama, rows[:2])
    cuts = [cut_of(llama, units) for units in list(CUTS.values())[:3]]
    first = Ablation(llama, tmp_path, batches=batches)
    values = [first.loss(cut) for cut in cuts]
    (file,) = tmp_path.glob("*/loss.jsonl")
    whole = file.read_bytes()
    *before, last = whole.splitlines()
    file.write_bytes(b"".join(line + b"\n" for line in before) + last[:kept])
    again = Ablation(llama, tmp_path, batches=batches)
    assert len(again._losses.known) == known
    assert [again.loss(cut) for cut in cuts] == values
    third = Ablation(llama, tmp_path, batches=batches)
    assert len(third._losses.known) == 3, "what was written after the torn line can be read"
    assert file.read_bytes().splitlines()[-1] == last


def test_values_of_other_settings_are_others(llama, rows, tmp_path):
    batches, questions = batches_of(llama, rows[:4]), Questions(rows[:4], max_new_tokens=4)
    other_labels = replace(batches[0], labels=batches[0].labels.roll(1, 0))
    decoding = replace(llama.decoding, latents=1)

    def folders(name, checkpoint=llama, **options):
        options = {"batches": batches, "questions": questions, **options}
        found = Ablation(checkpoint, tmp_path, **options)
        return (found._losses if name == "loss" else found._answers).file

    of_model = [
        {},
        {"checkpoint": with_manifest(llama, files={**llama.files, "model.safetensors": "others"})},
        {"checkpoint": with_manifest(llama, files={**llama.files, "extra_modules.safetensors": "some"})},
        {"checkpoint": with_manifest(llama, decoding=decoding)},
        {"code": "newer"},
    ]
    of_losses = [
        {"batches": batches[:1]},
        {"batches": batches[::-1]},
        {"batches": [other_labels, *batches[1:]]},
        {"batches": batches_of(llama, rows[:4], size=1)},
    ]
    of_answers = [
        {"questions": replace(questions, **changes)}
        for changes in (
            {"rows": rows[:3]},
            {"rows": [*rows[:3], replace(rows[3], answer="77")]},
            {"max_new_tokens": 5},
            {"answers": "text"},
            {"batch_size": 2},
        )
    ]
    for name, others in (("loss", of_losses), ("accuracy", of_answers)):
        files = [folders(name, **options) for options in of_model + others]
        assert len(set(files)) == len(files)
    assert {folders("loss", **options) for options in of_answers} == {folders("loss")}
    assert {folders("accuracy", **options) for options in of_losses} == {folders("accuracy")}


def test_a_loss_that_is_no_number_is_refused(llama, rows, tmp_path):
    found = Ablation(llama, tmp_path, batches=batches_of(llama, rows[:2]))
    with torch.no_grad():
        llama.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(CopraError, match=r"^loss: it is nan with layers \[0, 1\] of 3 left"):
        found.loss(cut_of(llama, [("layers", 2, 2)]))
    assert found.loss(cut_of(llama, [("layers", 1, 1)])) > 0


def test_a_model_that_cannot_answer_has_no_accuracy(llama, rows, tmp_path):
    base = with_manifest(llama, decoding=None)
    found = Ablation(base, tmp_path, batches=batches_of(llama, rows[:2]), questions=Questions(rows[:2]))
    assert found.loss(cut_of(llama, [])) > 0
    with pytest.raises(CopraError, match=r"^accuracy: this model was never trained to answer"):
        found.answers(cut_of(llama, []))


def test_a_thought_emulator_needs_all_layers(llama, rows, tmp_path):
    decoding = replace(llama.decoding, emulated=True)
    extra_modules = torch.nn.ModuleDict({name: torch.nn.Identity() for name in ("mind_reader", "emulator")})
    emulated = replace(with_manifest(llama, decoding=decoding), extra_modules=extra_modules)
    found = Ablation(emulated, tmp_path, questions=Questions(rows[:2]))
    with pytest.raises(CopraError, match=r"^accuracy: .*thought emulator .* no layer can be left out"):
        found.answers(cut_of(llama, [("layers", 0, 0)]))


def test_a_place_that_cannot_be_written_is_named(llama, rows, tmp_path):
    (tmp_path / "file").write_text("")
    found = Ablation(llama, tmp_path / "file", batches=batches_of(llama, rows[:2]))
    with pytest.raises(CopraError, match=rf"^{tmp_path}/file/.*loss.jsonl: could not be written"):
        found.loss(cut_of(llama, []))
