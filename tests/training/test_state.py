"""States of a training: whole or passed over."""

import json
import shutil

import pytest
import torch

from copra.training.state import RECORD, TENSORS, load_state, save_state


@pytest.fixture
def make_training(make_model):
    """Makes a model and its optimizer after so many steps on random tokens."""

    def make(kind: str = "gpt2", steps: int = 0, **changes):
        model = make_model(kind, double=False, **changes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(steps):
            train_once(model, optimizer, step)
        return model, optimizer

    return make


def train_once(model, optimizer, number: int) -> None:
    input_ids = torch.randint(1, 47, (2, 8), generator=torch.Generator().manual_seed(number))
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("kind", "tied"), [("gpt2", True), ("copra_llama", False)])
def test_a_state_brings_all_back(make_training, tmp_path, kind, tied):
    model, optimizer = make_training(kind, 3, tied=tied)
    save_state(tmp_path, 3, model, optimizer, {"progress": {"tokens": 5}})
    before = weights(model)
    other, other_optimizer = make_training(kind, 1, tied=tied)
    record = load_state(tmp_path, other, other_optimizer)
    assert (record["step"], record["progress"]) == (3, {"tokens": 5})
    assert same(weights(other), before)
    # Both go on alike only if the moments and the step count of AdamW came back too.
    for each in ((model, optimizer), (other, other_optimizer)):
        train_once(*each, 9)
    assert same(weights(other), weights(model))
    assert not same(weights(other), before)
    shared = other.get_input_embeddings().weight is other.get_output_embeddings().weight
    assert shared == tied


def test_a_new_state_stays_with_the_one_before_it(make_training, tmp_path):
    training = make_training(steps=1)
    for before, step in ((None, 9), (9, 10), (10, 1000), (10, 11)):
        save_state(tmp_path, step, *training, {})
        expected = [f"step-{each:09d}" for each in (before, step) if each]
        assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_a_failed_save_leaves_the_old_state(make_training, tmp_path):
    training = make_training(steps=1)
    save_state(tmp_path, 1, *training, {})
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path, 2, *training, {"loss": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert load_state(tmp_path, *training)["step"] == 1


def test_without_a_state_there_is_nothing_to_load(make_training, tmp_path):
    model, optimizer = make_training()
    before = weights(model)
    # What a killed save leaves is no state.
    (tmp_path / ".step-000000004.tmp-77").mkdir()
    assert load_state(tmp_path, model, optimizer) is None
    assert load_state(tmp_path / "nowhere", model, optimizer) is None
    assert same(weights(model), before)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    """One bit of the last number."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def other_step(path):
    """A record that is valid JSON and was never written."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 7}))


def without_digest(path):
    record = json.loads(path.read_text())
    del record["digest"]
    path.write_text(json.dumps(record))


DAMAGES = {
    "tensors cut": lambda state: cut(state / TENSORS),
    "tensors changed": lambda state: flip(state / TENSORS),
    "tensors empty": lambda state: (state / TENSORS).write_bytes(b""),
    "tensors missing": lambda state: (state / TENSORS).unlink(),
    "record changed": lambda state: other_step(state / RECORD),
    "record without digest": lambda state: without_digest(state / RECORD),
    "record cut": lambda state: (state / RECORD).write_text((state / RECORD).read_text()[:-5]),
    "record empty": lambda state: (state / RECORD).write_text(""),
    "record no JSON": lambda state: (state / RECORD).write_bytes(b"\xff\x00 torn"),
    "record a list": lambda state: (state / RECORD).write_text("[]"),
    "record an empty mapping": lambda state: (state / RECORD).write_text("{}"),
    "record missing": lambda state: (state / RECORD).unlink(),
    "nothing in it": lambda state: (shutil.rmtree(state), state.mkdir()),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_state_is_passed_over(make_training, tmp_path, damage):
    model, optimizer = make_training(steps=2)
    save_state(tmp_path, 2, model, optimizer, {})
    DAMAGES[damage](tmp_path / "step-000000002")
    fresh, fresh_optimizer = make_training()
    before = weights(fresh)
    torch.manual_seed(5)
    assert load_state(tmp_path, fresh, fresh_optimizer) is None
    assert same(weights(fresh), before)
    assert not fresh_optimizer.state
    assert torch.initial_seed() == 5


@pytest.mark.parametrize("damage", ["tensors changed", "record cut", "nothing in it"])
def test_the_older_state_stands_in_for_a_torn_one(make_training, tmp_path, damage):
    """Both are there when a save was cut between its rename and the removal of the older state."""
    model, optimizer = make_training(steps=2)
    save_state(tmp_path / "states", 2, model, optimizer, {"of": "two"})
    at_two = weights(model)
    shutil.copytree(tmp_path / "states", tmp_path / "kept")
    train_once(model, optimizer, 2)
    save_state(tmp_path / "states", 3, model, optimizer, {"of": "three"})
    shutil.copytree(tmp_path / "kept", tmp_path / "states", dirs_exist_ok=True)
    again, again_optimizer = make_training()
    assert load_state(tmp_path / "states", again, again_optimizer)["of"] == "three"
    DAMAGES[damage](tmp_path / "states" / "step-000000003")
    assert load_state(tmp_path / "states", again, again_optimizer)["of"] == "two"
    assert same(weights(again), at_two)
    # The next save clears the torn one away, even where it comes at an earlier step.
    save_state(tmp_path / "states", 2, again, again_optimizer, {})
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-000000002"]
