"""copra train from the command line's settings to the checkpoint."""

import json
from argparse import ArgumentParser

import pytest
import torch

from copra.cost.flops import FlopCounter
from copra.errors import CopraError
from copra.files import MANIFEST
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.tokens import MARKERS, markers_of, tokenise
from copra.reasoning import METHODS
from copra.reasoning.distil import stage_of
from copra.reasoning.layout import Decoding
from copra.tasks.prepare import prepare
from copra.tasks.task import Task
from copra.training import loop
from copra.verbs import train


@pytest.fixture
def place(tmp_path, rows, word_base):
    """A folder with the data and an untrained base."""

    class Sums(Task):
        kind: str = "sums"

        def rows(self):
            yield from (("train", row) for row in rows[:16])
            yield from (("valid", row) for row in rows[16:20])
            yield from (("test", row) for row in rows[20:])

    prepare(Sums(), tmp_path / "data")
    made = word_base()
    manifest = {"node": "tiny@0", "seed": 0, "lineage": [], "decoding": None, "training_flops": 0}
    manifest |= {"base": {}, "dense_shape": {}, "typical_answer": {"prompt": 7, "generated": 15}}
    save_checkpoint(tmp_path / "tiny", made.model, made.tokenizer, manifest)
    return tmp_path


def train_stage(
    place, parent: str, output: str, kind: str = "cot", stage: int = 0, *, method=(), teacher=None, **training
):
    method = {
        "kind": kind,
        "training": {"steps": 1},
        **({"max_latent_stage": 1} if kind == "coconut" else {}),
        **dict(method),
    }
    usual = {"learning_rate": 3e-3, "steps": 4, "batch_size": 8, "validations": 2}
    settings = {
        "node": f"tiny@0+{output}",
        "method": kind,
        "stage": stage_of(METHODS[kind].model_validate(method), stage).canonical(),
        "training": {**usual, **training},
        "seed": 3,
        "max_new_tokens": 8,
    }
    parser = ArgumentParser()
    train.arguments(parser)
    words = ["--settings", json.dumps(settings), "--save-every", "-1"]
    for name, value in {"parent": parent, "data": "data", "state": "state", "output": output}.items():
        words += [f"--{name}", str(place / value)]
    if teacher is not None:
        words += ["--teacher", str(place / teacher / MANIFEST)]
    train.run(parser.parse_args(words))
    return load_checkpoint(place / output)


def test_a_stage_becomes_a_checkpoint(place, rows):
    checkpoint = train_stage(place, "tiny", "coconut", "coconut", stage=2, steps=None, epochs=2)
    manifest = checkpoint.manifest
    markers = markers_of(checkpoint.tokenizer)
    assert Decoding.from_json(manifest["decoding"]) == Decoding(
        (markers.start,), 1, "hidden", markers.latent, (markers.end,)
    )
    assert (manifest["node"], manifest["method"], manifest["seed"]) == ("tiny@0+coconut", "coconut", 3)
    (done,) = manifest["lineage"]
    assert (done["step"], done["record"]["steps"], done["record"]["rows"]) == ("coconut", 4, 16)
    # Two epochs of samples: the question, start, one latent, end, the answer.
    lengths = [len(row.question) + 3 + len(row.answer) for row in tokenise(checkpoint.tokenizer, rows[:16])]
    supervised = [len(row.answer) for row in tokenise(checkpoint.tokenizer, rows[:16])]
    counts = (2 * sum(lengths), 2 * sum(n * n for n in lengths), 2 * sum(supervised))
    assert (
        tuple(done["record"]["work"]["model"][name] for name in ("tokens", "context", "supervised")) == counts
    )
    assert manifest["training_flops"] == FlopCounter(checkpoint.shape).of_training(*counts) > 0
    log = (place / "coconut" / loop.LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]
    assert not any((place / "state").iterdir())


def test_stages_add_up(place):
    first = train_stage(place, "tiny", "cot")
    second = train_stage(place, "cot", "coconut", "coconut", stage=1)
    assert [done["step"] for done in second.manifest["lineage"]] == ["cot", "coconut"]
    assert second.manifest["lineage"][1]["parent"] == first.manifest["weights"]["sha256"]
    own = second.manifest["lineage"][1]["record"]["flops"]
    assert second.manifest["training_flops"] == first.manifest["training_flops"] + own


def test_equal_runs_give_equal_checkpoints(place):
    for output in ("one", "two"):
        train_stage(place, "tiny", output, select="accuracy")
    one, two = (json.loads((place / output / MANIFEST).read_text()) for output in ("one", "two"))
    assert one["weights"] == two["weights"]
    assert one.pop("node") != two.pop("node")
    assert one["lineage"][0].pop("step") != two["lineage"][0].pop("step")
    assert one == two
    assert (place / "one" / loop.LOG).read_text() == (place / "two" / loop.LOG).read_text()


def test_an_interrupted_stage_ends_in_the_same_checkpoint(place, monkeypatch):
    train_stage(place, "tiny", "cot")
    whole = {path.name: path.read_bytes() for path in (place / "cot").iterdir()}
    (place / "cot").rename(place / "undisturbed")
    optimise = loop.Trainer._optimise

    def dying(self, *arguments):
        if arguments[-1] == 4:
            raise KeyboardInterrupt
        return optimise(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimise", dying)
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "tiny", "cot")
    assert not (place / "cot").exists()
    assert len(list((place / "state").glob("*/step-*"))) == 1
    train_stage(place, "tiny", "cot")
    assert {path.name: path.read_bytes() for path in (place / "cot").iterdir()} == whole


def test_a_state_serves_its_own_settings_only(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "log_text", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "tiny", "cot")
    other = train_stage(place, "tiny", "cot", learning_rate=1e-3)
    log = [json.loads(line) for line in (place / "cot" / loop.LOG).read_text().splitlines()]
    assert [line["learning_rate"] for line in log] == [1e-3] * 4
    assert other.manifest["lineage"][0]["training"]["learning_rate"] == 1e-3


def test_a_training_that_breaks_down_leaves_no_checkpoint(place):
    with pytest.raises(CopraError, match=r"step \d+: loss .*Batch of rows [0-9a-f]{16}"):
        train_stage(place, "tiny", "cot", steps=40, learning_rate=50.0)
    assert not (place / "cot").exists()


def marker_rows(checkpoint):
    ids = checkpoint.tokenizer.convert_tokens_to_ids(list(MARKERS))
    return checkpoint.model.get_input_embeddings().weight[ids].detach()


@pytest.mark.parametrize("thought", ["hidden", "none"])
def test_markers_start_when_they_are_first_trained(place, monkeypatch, thought):
    """At the row of the line break, since these rows have no `<<`; a second stage goes on with them."""
    started = []
    run = loop.Trainer.run

    def spy(self):
        ids = [self.markers.start, self.markers.latent, self.markers.end]
        weight = self.model.get_input_embeddings().weight
        started.append((weight[ids].detach().clone(), weight[line_break].detach().clone()))
        return run(self)

    monkeypatch.setattr(loop.Trainer, "run", spy)
    base = load_checkpoint(place / "tiny")
    (line_break,) = base.tokenizer("\n")["input_ids"]
    train_stage(place, "tiny", "cot")
    assert torch.equal(started[-1][0], marker_rows(base))
    kind = "coconut" if thought == "hidden" else "no_cot"
    first = train_stage(place, "cot", "first", kind, stage=1 if kind == "coconut" else 0)
    if thought == "none":
        assert not torch.equal(started[-1][0], started[-1][1].expand(3, -1))
        return
    assert torch.equal(started[-1][0], started[-1][1].expand(3, -1))
    train_stage(place, "first", "second", "coconut", stage=2)
    assert torch.equal(started[-1][0], marker_rows(first))


def test_rows_longer_than_the_model_are_refused(place, word_base, rows):
    parent = load_checkpoint(place / "tiny")
    parent.model.config.max_position_embeddings = 20
    save_checkpoint(place / "short", parent.model, parent.tokenizer, parent.manifest)
    with pytest.raises(CopraError, match=r"has 30 tokens, .* 20 positions: set training\.max_tokens"):
        train_stage(place, "short", "cot")
    train_stage(place, "short", "cot", max_tokens=20)
    # No step is left, so the longest row has 9 + 3 tokens.
    train_stage(place, "short", "no-cot", "no_cot")


def test_validation_rows_longer_than_the_model_are_refused_too(place):
    parent = load_checkpoint(place / "tiny")
    parent.model.config.max_position_embeddings = 20
    save_checkpoint(place / "short", parent.model, parent.tokenizer, parent.manifest)
    import pandas

    frame = pandas.read_parquet(place / "data" / "train.parquet")
    frame[frame["steps"].map(len) == 1].to_parquet(place / "data" / "train.parquet")
    with pytest.raises(CopraError, match=r"has 30 tokens, .* 20 positions"):
        train_stage(place, "short", "cot")


def same_parts(first, second, name: str) -> bool:
    first, second = (checkpoint.parts[name].state_dict() for checkpoint in (first, second))
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_the_three_trainings_of_icot_kd_hand_on_their_parts(place):
    cot = train_stage(place, "tiny", "cot")
    reading = train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="cot", select="accuracy")
    emulating = train_stage(place, "kd.0", "kd.1", "icot_kd", 1, teacher="cot")
    coupled = train_stage(place, "kd.1", "kd", "icot_kd", 2)
    stages = (reading, emulating, coupled)
    known = {"node": cot.manifest["node"], "sha256": cot.manifest["weights"]["sha256"]}
    assert [stage.manifest["lineage"][-1]["teacher"] for stage in stages] == [known, known, None]
    assert [stage.manifest["decoding"] and stage.manifest["decoding"]["emulated"] for stage in stages] == [
        None,
        True,
        True,
    ]
    assert all(stage.manifest["parts"]["settings"] == {"mind_reader": {}, "emulator": {}} for stage in stages)
    # The emulator is made of the first parent and waits; then it alone learns, and then all do.
    assert torch.equal(
        reading.parts["emulator"].body.get_input_embeddings().weight, cot.model.get_input_embeddings().weight
    )
    assert same_parts(reading, emulating, "mind_reader")
    assert reading.manifest["weights"] == emulating.manifest["weights"]
    assert not same_parts(reading, emulating, "emulator")
    assert not any(same_parts(emulating, coupled, name) for name in ("mind_reader", "emulator"))
    assert emulating.manifest["weights"] != coupled.manifest["weights"]


def test_a_teacher_must_be_named_and_have_the_students_shape(place, word_base):
    train_stage(place, "tiny", "cot")
    with pytest.raises(CopraError, match=r"^--teacher: this method learns from a teacher"):
        train_stage(place, "cot", "kd.0", "icot_kd", 0)
    parent = load_checkpoint(place / "tiny")
    save_checkpoint(place / "small", word_base(layers=1).model, parent.tokenizer, parent.manifest)
    with pytest.raises(CopraError, match=rf"^{place / 'small'}: the teacher must have the shape"):
        train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="small")
    assert not (place / "kd.0").exists()


def test_a_state_serves_its_own_teacher_only(place, monkeypatch):
    train_stage(place, "tiny", "cot")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "log_text", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="cot")
    assert len(list((place / "state").iterdir())) == 1
    other = train_stage(place, "cot", "kd.0", "icot_kd", 0, teacher="tiny")
    assert other.manifest["lineage"][-1]["teacher"]["node"] == "tiny@0"
    assert len(list((place / "state").iterdir())) == 1


def drop_a_layer(place, parent: str, output: str):
    """The checkpoint without its last layer."""
    checkpoint = load_checkpoint(place / parent)
    del checkpoint.model.model.layers[-1:]
    checkpoint.model.config.num_hidden_layers -= 1
    save_checkpoint(place / output, checkpoint.model, checkpoint.tokenizer, checkpoint.manifest)
    return load_checkpoint(place / output)


def log_of(place, output: str) -> list[dict]:
    return [json.loads(line) for line in (place / output / loop.LOG).read_text().splitlines()]


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
    done = healed.manifest["lineage"][-1]
    assert done["teacher"] == {"node": "tiny@0+cot", "sha256": dense.manifest["weights"]["sha256"]}
    assert done["stage"]["distil"] == {"weight": 1.0, "temperature": 2.0, "task_weight": 0.0}
    assert done["record"]["selected"]["by"] == "loss"
    # The teacher is another model than the student, and only looks at the sequences.
    tokens = tokenise(healed.tokenizer, rows[:16])
    lengths = [len(row.question) + sum(map(len, row.steps)) + len(row.answer) for row in tokens]
    supervised = sum(n - len(row.question) for n, row in zip(lengths, tokens, strict=True))
    counts = (20 * sum(lengths), 20 * sum(n * n for n in lengths), 20 * supervised)
    own, looking = (FlopCounter(each.shape).of_training(*counts) for each in (healed, dense))
    assert looking > own
    assert done["record"]["flops"] == own + looking // 3
    assert healed.manifest["training_flops"] == dense.manifest["training_flops"] + own + looking // 3
    assert load_checkpoint(place / "cot").manifest == dense.manifest


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8.0}])
def test_distillation_beside_the_own_loss(place, lora):
    train_stage(place, "tiny", "cot", steps=20)
    drop_a_layer(place, "cot", "pruned")
    method = {"distil": {"task_weight": 0.5, "weight": 2.0}}
    healed = train_stage(place, "pruned", "heal", method=method, teacher="cot", lora=lora, select="accuracy")
    for line in log_of(place, "heal"):
        assert line["loss"] == pytest.approx(0.5 * line["cross_entropy"] + 2 * line["distillation"], rel=1e-5)
    assert healed.manifest["weights"] != load_checkpoint(place / "pruned").manifest["weights"]


def test_a_teacher_of_predictions_must_have_the_students_vocabulary(place, word_base, rows):
    from copra.models.bases import make_base
    from copra.models.settings import Base, FromScratch

    parent = load_checkpoint(place / "tiny")
    spec = FromScratch(hidden_size=32, layers=1, heads=4, ffn_size=48, context=64)
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


def test_a_teacher_of_latents_needs_its_own_projection(place):
    method = {"latents": 1, "distil": {}}
    with pytest.raises(CopraError, match=rf"^{place / 'tiny'}: the stage feeds latents through a projection"):
        train_stage(place, "tiny", "heal", "codi", method=method, teacher="tiny")
    train_stage(place, "tiny", "codi", "codi", method={"latents": 1})
    healed = train_stage(place, "codi", "heal", "codi", method=method, teacher="codi")
    # It starts from its teacher, projection and all.
    assert log_of(place, "heal")[0]["distillation"] < 1e-8
    assert set(healed.parts) == {"projection"}


def test_markers_start_in_a_teacher_that_never_read_them_too(place):
    """So a teacher that is the student's own parent says at first what the student says."""
    train_stage(place, "tiny", "cot")
    method = {"distil": {"task_weight": 1.0}}
    train_stage(place, "cot", "latent", "coconut", 2, method=method, teacher="cot")
    assert log_of(place, "latent")[0]["distillation"] < 1e-8


def test_rows_longer_than_the_teacher_are_refused(place):
    parent = load_checkpoint(place / "tiny")
    parent.model.config.max_position_embeddings = 20
    save_checkpoint(place / "short", parent.model, parent.tokenizer, parent.manifest)
    with pytest.raises(CopraError, match=r"has 30 tokens, .* 20 positions"):
        train_stage(place, "tiny", "heal", method={"distil": {}}, teacher="short")


def test_a_healing_goes_on_after_a_kill(place, monkeypatch):
    train_stage(place, "tiny", "cot", steps=20)
    drop_a_layer(place, "cot", "pruned")
    optimise = loop.Trainer._optimise

    def dying(self, *arguments):
        if arguments[-1] == 4:
            raise KeyboardInterrupt
        return optimise(self, *arguments)

    healing = {"method": {"distil": {}}, "teacher": "cot"}
    train_stage(place, "pruned", "heal", **healing)
    whole = {path.name: path.read_bytes() for path in (place / "heal").iterdir()}
    (place / "heal").rename(place / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimise", dying)
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "pruned", "heal", **healing)
    assert len(list((place / "state").glob("*/step-*"))) == 1
    train_stage(place, "pruned", "heal", **healing)
    assert {path.name: path.read_bytes() for path in (place / "heal").iterdir()} == whole


def test_a_projection_goes_on_from_stage_to_stage(place, monkeypatch):
    """And a step decoder, which the next method does not want, stays behind."""
    projected = {"latent_input": "projected", "explaining": {"layers": 1}}
    first = train_stage(place, "tiny", "first", "coconut", 1, method=projected)
    assert first.manifest["parts"]["settings"] == {"projection": {}, "step_decoder": {"layers": 1}}
    started, run = [], loop.Trainer.run

    def spy(self):
        started.append({name: part.state_dict() for name, part in self.parts.items()})
        started[-1] = {name: {k: v.clone() for k, v in part.items()} for name, part in started[-1].items()}
        return run(self)

    monkeypatch.setattr(loop.Trainer, "run", spy)
    second = train_stage(place, "first", "second", "codi", 0, method={"latents": 1})
    assert set(started[0]) == set(second.parts) == {"projection"}
    for name, value in first.parts["projection"].state_dict().items():
        assert torch.equal(started[0]["projection"][name], value)
    assert not same_parts(first, second, "projection")
    third = train_stage(place, "second", "third", "cot")
    assert third.manifest["parts"] is None


def test_adapters_end_in_a_plain_checkpoint(place):
    lora = {"rank": 2, "alpha": 4.0}
    adapted = train_stage(place, "tiny", "adapted", "codi", 0, lora=lora, select="accuracy")
    parent = load_checkpoint(place / "tiny")
    assert set(adapted.model.state_dict()) == set(parent.model.state_dict())
    assert {file.name for file in (place / "adapted").iterdir()} == {
        file.name for file in (place / "tiny").iterdir()
    } | {"training.jsonl", "parts.safetensors"}
    assert adapted.manifest["lineage"][-1]["training"]["lora"]["rank"] == 2
    # The same training again gives the same weights.
    again = train_stage(place, "tiny", "again", "codi", 0, lora=lora, select="accuracy")
    assert again.manifest["weights"] == adapted.manifest["weights"]
    assert again.manifest["parts"] == adapted.manifest["parts"]
