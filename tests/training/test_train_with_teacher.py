"""copra train where a stage learns from a teacher: its hidden states, or its predictions."""

import pytest
import torch
from stages import drop_a_layer, log_of, same_extra_modules, train_stage

from copra.cost.flops import FlopCounter
from copra.data.tokenization import tokenize
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.training import loop
from copra.utils.errors import CopraError


@pytest.mark.slow
def test_the_three_trainings_of_icot_kd_hand_on_their_parts(place):
    cot = train_stage(place, "tiny", "cot")
    reading = train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="cot", select_best_by="accuracy")
    emulating = train_stage(place, "kd.0", "kd.1", "icot_kd", 1, teacher="cot")
    coupled = train_stage(place, "kd.1", "kd", "icot_kd", 2)
    stages = (reading, emulating, coupled)
    known = {"node": cot.manifest.node, "sha256": cot.manifest.weights.sha256}
    assert [stage.manifest.lineage[-1]["teacher"] for stage in stages] == [known, known, None]
    assert [stage.manifest.decoding and stage.manifest.decoding.emulated for stage in stages] == [
        None,
        True,
        True,
    ]
    assert all(
        stage.manifest.extra_modules.settings == {"mind_reader": {}, "emulator": {}} for stage in stages
    )
    # The emulator is made of the first parent and waits; then it alone learns, and then all do.
    assert torch.equal(
        reading.extra_modules["emulator"].body.get_input_embeddings().weight,
        cot.model.get_input_embeddings().weight,
    )
    assert same_extra_modules(reading, emulating, "mind_reader")
    assert reading.manifest.weights == emulating.manifest.weights
    assert not same_extra_modules(reading, emulating, "emulator")
    assert not any(same_extra_modules(emulating, coupled, name) for name in ("mind_reader", "emulator"))
    assert emulating.manifest.weights != coupled.manifest.weights


def test_a_teacher_must_be_named_and_have_the_students_shape(place, word_base):
    train_stage(place, "tiny", "cot")
    with pytest.raises(CopraError, match=r"^--teacher: this method learns from a teacher"):
        train_stage(place, "cot", "kd.0", "icot_kd", 0)
    parent = load_checkpoint(place / "tiny")
    save_checkpoint(place / "small", word_base(layers=1).model, parent.tokenizer, parent.manifest)
    with pytest.raises(CopraError, match=rf"^{place / 'small'}: the teacher must have the shape"):
        train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="small")
    assert not (place / "kd.0").exists()


@pytest.mark.slow
def test_a_state_serves_its_own_teacher_only(place, monkeypatch):
    train_stage(place, "tiny", "cot")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "log_text", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="cot")
    assert len(list((place / "state").iterdir())) == 1
    other = train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="tiny")
    assert other.manifest.lineage[-1]["teacher"]["node"] == "tiny@0"
    assert len(list((place / "state").iterdir())) == 1


@pytest.mark.slow
def test_a_pruned_model_heals(place, rows):
    """The dense model teaches it alone: it comes near to that model's predictions, and so to the labels."""
    dense = train_stage(place, "tiny", "cot", steps=60, learning_rate=1e-2)
    pruned = drop_a_layer(place, "cot", "pruned")
    assert len(pruned.shape.layers) == len(dense.shape.layers) - 1
    healed = train_stage(
        place, "pruned", "heal", method={"distil": {"temperature": 2.0}}, teacher="cot", epochs=20, steps=None
    )
    before, *_, after = log_of(place, "heal")
    assert before["distillation"] > 1.0
    assert after["distillation"] < 0.3 * before["distillation"]
    assert after["cross_entropy"] < 0.5 * before["cross_entropy"]
    assert before["loss"] == pytest.approx(before["distillation"])
    assert after["validation_loss"] == after["validation_distillation"] < 0.5 * before["distillation"]
    done = healed.manifest.lineage[-1]
    assert done["teacher"] == {"node": "tiny@0+cot", "sha256": dense.manifest.weights.sha256}
    assert done["stage"]["distil"] == {"weight": 1.0, "temperature": 2.0, "task_weight": 0.0}
    assert done["record"]["selected"]["by"] == "loss"
    # The teacher is another model than the student, and only looks at the sequences.
    tokens = tokenize(healed.tokenizer, rows[:16])
    lengths = [len(row.question) + sum(map(len, row.steps)) + len(row.answer) for row in tokens]
    supervised = sum(n - len(row.question) for n, row in zip(lengths, tokens, strict=True))
    counts = (20 * sum(lengths), 20 * sum(n * n for n in lengths), 20 * supervised)
    own, looking = (FlopCounter(each.shape).of_training(*counts) for each in (healed, dense))
    assert looking > own
    assert done["record"]["flops"] == own + looking // 3
    assert healed.manifest.training_flops == dense.manifest.training_flops + own + looking // 3
    assert load_checkpoint(place / "cot").manifest == dense.manifest


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8.0}])
def test_distillation_beside_the_own_loss(place, lora):
    train_stage(place, "tiny", "cot", steps=20)
    drop_a_layer(place, "cot", "pruned")
    method = {"distil": {"task_weight": 0.5, "weight": 2.0}}
    healed = train_stage(
        place, "pruned", "heal", method=method, teacher="cot", lora=lora, select_best_by="accuracy"
    )
    for line in log_of(place, "heal"):
        assert line["loss"] == pytest.approx(0.5 * line["cross_entropy"] + 2 * line["distillation"], rel=1e-5)
    assert healed.manifest.weights != load_checkpoint(place / "pruned").manifest.weights


def test_a_teacher_of_predictions_must_have_the_students_vocabulary(place, word_base, rows):
    from copra.models.bases import make_base
    from copra.schema.base import Base, FromScratch

    parent = load_checkpoint(place / "tiny")
    spec = FromScratch(hidden_size=32, layers=1, heads=4, intermediate_size=48, max_position_embeddings=64)
    model, tokenizer = make_base(Base(from_scratch=spec), rows[:2], 0)
    save_checkpoint(place / "other", model, tokenizer, parent.manifest)
    sizes = rf"{model.config.vocab_size} and {parent.model.config.vocab_size} tokens"
    with pytest.raises(CopraError, match=rf"^{place / 'other'}: .* student's vocabulary.* {sizes}"):
        train_stage(place, "tiny", "heal", method={"distil": {}}, teacher="other")
    words = parent.tokenizer.get_vocab()
    parent.tokenizer.add_tokens(["new"])
    save_checkpoint(place / "other", parent.model, parent.tokenizer, parent.manifest)
    assert len(parent.tokenizer.get_vocab()) == len(words) + 1
    with pytest.raises(CopraError, match=r"the same number of tokens, but others"):
        train_stage(place, "tiny", "heal", method={"distil": {}}, teacher="other")


@pytest.mark.slow
def test_a_teacher_of_latents_needs_its_own_projection(place):
    method = {"latents": 1, "distil": {}}
    with pytest.raises(CopraError, match=rf"^{place / 'tiny'}: the stage feeds latents through a projection"):
        train_stage(place, "tiny", "heal", "codi", method=method, teacher="tiny")
    train_stage(place, "tiny", "codi", "codi", method={"latents": 1})
    healed = train_stage(place, "codi", "heal", "codi", method=method, teacher="codi")
    # It starts from its teacher, projection and all.
    assert log_of(place, "heal")[0]["distillation"] < 1e-7
    assert set(healed.extra_modules) == {"projection"}


def test_markers_start_in_a_teacher_that_never_read_them_too(place):
    """So a teacher that is the student's own parent says at first what the student says."""
    train_stage(place, "tiny", "cot")
    method = {"distil": {"task_weight": 1.0}}
    train_stage(place, "cot", "latent", "coconut", 2, method=method, teacher="cot")
    assert log_of(place, "latent")[0]["distillation"] < 1e-7


def test_rows_longer_than_the_teacher_are_refused(place):
    parent = load_checkpoint(place / "tiny")
    parent.model.config.max_position_embeddings = 20
    save_checkpoint(place / "short", parent.model, parent.tokenizer, parent.manifest)
    with pytest.raises(CopraError, match=r"has 30 tokens, .* 20 positions"):
        train_stage(place, "tiny", "heal", method={"distil": {}}, teacher="short")


@pytest.mark.slow
def test_a_healing_goes_on_after_a_kill(place, monkeypatch):
    train_stage(place, "tiny", "cot", steps=20)
    drop_a_layer(place, "cot", "pruned")
    optimize = loop.Trainer._optimize

    def dying(self, *arguments):
        if arguments[-1] == 4:
            raise KeyboardInterrupt
        return optimize(self, *arguments)

    healing = {"method": {"distil": {}}, "teacher": "cot"}
    train_stage(place, "pruned", "heal", **healing)
    whole = {path.name: path.read_bytes() for path in (place / "heal").iterdir()}
    (place / "heal").rename(place / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimize", dying)
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "pruned", "heal", **healing)
    assert len(list((place / "state").glob("*/step-*"))) == 2
    train_stage(place, "pruned", "heal", **healing)
    assert {path.name: path.read_bytes() for path in (place / "heal").iterdir()} == whole
