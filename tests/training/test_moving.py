"""Stages that move as training goes on, as iCoT-SI's do: what is left out when, and what restarts."""

import pytest
import torch
from plain_training import log_of
from torch.optim.optimizer import register_optimizer_step_pre_hook

from copra.utils.errors import CopraError

# Tokens of the chain that are out at each of ten steps (two a part), and of seven.
TEN = [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
SEVEN = [5, 5, 6, 7, 7, 8, 9]


@pytest.fixture
def batches_of():
    """Collects the batches that a training really takes its steps on."""

    def collect(trainer) -> list[list]:
        seen, optimize = [], trainer._optimize

        def look(*arguments):
            seen.append(list(arguments[-2]))
            return optimize(*arguments)

        trainer._optimize = look
        return seen

    return collect


@pytest.fixture
def ages():
    """How many steps AdamW has behind it at each step: 0 after a restart."""
    seen: list[int] = []

    def look(optimizer, *_):
        counts = {int(state["step"]) for state in optimizer.state.values()}
        assert len(counts) <= 1
        seen.append(counts.pop() if counts else 0)

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def with_chain_left(trainer) -> list:
    """Rows whose chain, of 12 tokens or more, outlasts the stage, which ends with 9 tokens out."""
    return [row for row in trainer.rows if len(row.steps) > 1]


@pytest.mark.parametrize(("steps", "out"), [(10, TEN), (7, SEVEN), (5, [5, 6, 7, 8, 9])])
def test_the_chain_shrinks_as_the_training_goes_on(make_trainer, batches_of, steps, out):
    """Rows of 1, 2 and 3 steps have questions of 5, 7 and 9 tokens and chains of 6, 12 and 18; answers 3."""
    trainer = make_trainer("removing", steps=steps)
    rows = {row.id: row for row in trainer.rows}
    seen = batches_of(trainer)
    trainer.run()
    assert len(seen) == steps
    for gone, batch in zip(out, seen, strict=True):
        for sample in batch:
            row = rows[sample.id]
            chain = [token for step in row.steps for token in step]
            assert len(sample.tokens) == len(row.question) + max(len(chain) - gone, 0) + 3
            assert sample.tokens == row.question + chain[gone:] + row.answer
            assert sample.labels == [-100] * len(row.question) + chain[gone:] + row.answer


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(10, [0, 1] * 5), (7, [0, 1, 0, 0, 1, 0, 0]), (5, [0] * 5)],
)
def test_the_optimizer_starts_anew_exactly_when_one_more_goes(make_trainer, ages, steps, expected):
    trainer = make_trainer("removing", steps=steps, schedule="linear", warmup_steps=2)
    trainer.rows = with_chain_left(trainer)
    trainer.run()
    assert ages == expected
    # The learning rate goes on as it would.
    rates = [line["learning_rate"] for line in log_of(trainer)]
    shares = [0, 0.5, *(1 - i / (steps - 2) for i in range(steps - 2))]
    assert rates == pytest.approx([3e-3 * share for share in shares])


def test_the_optimizer_goes_on_once_no_chain_is_left(make_trainer, ages):
    """As in the reference code of 2405.14838, which restarts only where the batch before had chain left."""
    trainer = make_trainer("removing", steps=10)
    # Their chains have 6 tokens: gone with the second part of five.
    trainer.rows = [row for row in trainer.rows if len(row.steps) == 1]
    restarts = [batch.restarts for batch in trainer.samples.batches()]
    assert [number for number, restart in enumerate(restarts, 1) if restart] == [3]
    for done in range(1, 10):
        assert [batch.restarts for batch in trainer.samples.batches(done)] == restarts[done:]
    trainer.run()
    assert ages == [0, 1, *range(8)]


def test_a_restart_forgets_the_moments(make_trainer):
    """The first step of AdamW is lr in the direction of the sign of the gradient, whatever came before."""
    trainer = make_trainer("removing", steps=5, weight_decay=0.0, learning_rate=1e-3, max_grad_norm=1e9)
    trainer.rows = with_chain_left(trainer)
    moves, weight = [], trainer.model.base_model.layers[0].mlp.down_proj.weight
    optimize = trainer._optimize

    def look(*arguments):
        before = weight.detach().clone()
        line = optimize(*arguments)
        moves.append((weight.detach() - before).abs())
        return line

    trainer._optimize = look
    trainer.run()
    for move in moves:
        assert move.max() == pytest.approx(1e-3, rel=1e-3)
        assert move.median() == pytest.approx(1e-3, rel=1e-2)


def test_stages_that_stand_still_keep_their_optimizer(make_trainer, ages):
    make_trainer("cot", steps=6).run()
    assert ages == [0, 1, 2, 3, 4, 5]


def test_too_few_steps_for_the_parts_are_refused(make_trainer):
    with pytest.raises(CopraError, match=r"^training: .*each of 5 parts .* 4 optimizer steps are fewer"):
        make_trainer("removing", steps=4).run()


def test_validation_looks_at_the_end_of_the_stage(make_trainer):
    trainer = make_trainer("removing")
    lengths = {row.id: len(row.question) + max(6 * len(row.steps) - 9, 0) + 3 for row in trainer.validation}
    assert {sample.id: len(sample.tokens) for sample in trainer.samples.validation} == lengths


@pytest.mark.slow
def test_smoothing_removes_more_in_some_rows_and_repeats(make_trainer, batches_of):
    """One token more goes after each five of the twenty steps, and by chance some more of a row."""
    runs = []
    for state, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = make_trainer("removing smoothly", state=state, seed=seed, steps=20)
        rows = {row.id: row for row in trainer.rows}
        seen = batches_of(trainer)
        torch.manual_seed(5 if state == "b" else 4)
        trainer.run()
        runs.append([[(sample.id, sample.tokens) for sample in batch] for batch in seen])
    assert runs[0] == runs[1] != runs[2]
    more: dict[str, list[int]] = {}
    for step, batch in enumerate(runs[0]):
        for name, tokens in batch:
            chain = 6 * len(rows[name].steps)
            gone = len(rows[name].question) + chain + 3 - len(tokens)
            assert gone >= min(step // 5, chain)
            if gone < chain:
                more.setdefault(name, []).append(gone - step // 5)
    drawn = [number for numbers in more.values() for number in numbers]
    # With lambda = 0.7 half of the rows keep to the schedule, and 1 in 4 loses one token more.
    assert 0.35 < drawn.count(0) / len(drawn) < 0.65
    assert 0.1 < drawn.count(1) / len(drawn) < 0.4
    # A row that comes again is drawn anew.
    assert sum(len(set(numbers)) > 1 for numbers in more.values()) > 9
