"""Work of jobs, against FLOPs counted by hand.

A layer of width 16 with 4 query heads and 2 KV heads of size 4 and an FFN of 32 costs, for T tokens over P
cached ones, 2 T 16 4 (8 + 4) = 1536 T in projections, 4 T (P + T) 16 in scores and 2 T 3 16 32 = 3072 T in
the FFN; a position of the LM head with 50 tokens costs 2 16 50 = 1600.
"""

import pytest

from copra.data.sequences import TokenRow
from copra.methods import Coconut, Codi, Cot, IcotKd, NoCot
from copra.methods.few_shot import FewShot
from copra.plan import work
from copra.plan.estimate import Estimate
from copra.plan.jobs import jobs_of
from copra.plan.work import Work
from copra.schema.shape import LayerShape, ModelShape
from copra.schema.training import Training

SHAPE = ModelShape("llama", 16, 50, 3, (LayerShape(4, 2, 4, 32),) * 2)
# 5 tokens of the question, two steps of 3, 2 of the answer: 13, of which 8 are supervised in CoT.
ROW = TokenRow("a", [0] * 5, [[0] * 3, [0] * 3], [0] * 2)
ROWS = {"train": [ROW] * 3, "valid": [ROW] * 2}
SIZES = {"train": 100, "valid": 10}
STEP = {"steps": 1}


def forward(tokens: int, past: int = 0, logits: int = 0, layers: int = 2) -> int:
    return layers * (4608 * tokens + 64 * tokens * (past + tokens)) + 1600 * logits


def course(stage, sizes=SIZES, **training):
    settings = Training(**{"batch_size": 4, "num_validations": 2, "learning_rate": 1e-3, **training})
    return work.course(stage, settings, ROWS, sizes)


def test_training_with_chain_of_thought():
    found = course(Cot(kind="cot", training=STEP).stages()[0], steps=10)
    assert found.learning(SHAPE).flops == pytest.approx(40 * 3 * forward(13, logits=8))
    # 10 steps of one pass through 2 layers, and twice that backward.
    assert found.learning(SHAPE).layers == 60
    assert found.looking(SHAPE).flops == pytest.approx(2 * 10 * forward(13, logits=8))
    assert found.looking(SHAPE).layers == 2 * 3 * 2


def test_epochs_take_the_last_batch_as_it_is():
    """10 rows in batches of 4: 3 batches an epoch, and 10 rows."""
    stage, sizes = Cot(kind="cot", training=STEP).stages()[0], {"train": 10, "valid": 2}
    row = 3 * forward(13, logits=8)
    for epochs, steps, rows in ((1, 3, 10), (2, 6, 20), (1 / 3, 1, 4), (5 / 3, 5, 18)):
        found = course(stage, sizes, epochs=epochs)
        assert (found.steps, found.learning(SHAPE).flops) == (steps, pytest.approx(rows * row))


def test_parts_of_a_batch_make_more_passes_and_no_more_flops():
    stage = Cot(kind="cot", training=STEP).stages()[0]
    whole, parts = (course(stage, steps=10, micro_batch_size=size) for size in (4, 1))
    assert whole.learning(SHAPE).flops == parts.learning(SHAPE).flops
    assert parts.learning(SHAPE).layers == 4 * whole.learning(SHAPE).layers


def test_rows_that_are_too_long_are_left_out():
    short = TokenRow("b", [0] * 5, [[0] * 3], [0] * 2)
    rows = {"train": [ROW, short], "valid": [ROW]}
    settings = Training(batch_size=50, epochs=1, max_tokens=10)
    found = work.course(Cot(kind="cot", training=STEP).stages()[0], settings, rows, SIZES)
    assert found.steps == 1
    assert found.learning(SHAPE).flops == pytest.approx(50 * 3 * forward(10, logits=5))


def test_latents_stand_for_steps_and_wait_for_one_another():
    """The last of three stages: question, start, two latents, end, answer."""
    stage = Coconut(kind="coconut", max_latent_stage=2, training=STEP).stages()[3]
    found = course(stage, steps=1)
    assert found.learning(SHAPE).flops == pytest.approx(4 * 3 * forward(5 + 1 + 2 + 1 + 2, logits=2))
    assert found.learning(SHAPE).layers == 3 * 3 * 2


def test_adapters_save_the_gradients_of_what_they_leave_as_it_is():
    """Of rank 2 on all seven matrices of a layer, which have 16 + 16, twice 16 + 8, 16 + 16 and three times
    16 + 32 inputs and outputs."""
    stage, lora = Cot(kind="cot", training=STEP).stages()[0], {"rank": 2, "alpha": 1}
    found = course(stage, steps=1, lora=lora)
    frozen, adapters = 2 * 4608 * 13, 2 * 13 * 2 * 2 * (32 + 2 * 24 + 32 + 3 * 48)
    rest = forward(13, logits=8) - frozen
    assert found.learning(SHAPE).flops == pytest.approx(4 * (2 * frozen + 3 * (rest + adapters)))
    assert found.looking(SHAPE).flops == pytest.approx(2 * 10 * (frozen + rest + adapters))


def test_validation_reads_a_teacher_once_too():
    stage = Cot(kind="cot", training=STEP, distil={}).resolved_stages()[0]
    assert course(stage, steps=1).looking(SHAPE, SHAPE).flops == pytest.approx(
        2 * 10 * 2 * forward(13, logits=8)
    )


def test_a_teacher_reads_without_learning_and_in_its_own_shape():
    stage = Cot(kind="cot", training=STEP, distil={}).resolved_stages()[0]
    teacher = SHAPE.with_layers(SHAPE.layers * 2)
    found = course(stage, steps=1).learning(SHAPE, teacher).flops
    assert found == pytest.approx(4 * (3 * forward(13, logits=8) + forward(13, logits=8, layers=4)))


def test_where_a_teacher_is_not_known_the_training_is_not(make_workflow, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    heal = {"kind": "cot", "distil": {"teacher": "far+cot"}, "training": STEP}
    bases = make_workflow().experiment.bases["llama"].canonical()
    workflow = make_workflow(
        bases={"llama": bases, "far": {"path": "some/model"}}, steps__heal=heal, recipes=[["cot", "heal"]]
    )
    jobs, estimate = jobs_of(workflow), Estimate(workflow, tmp_path, set())
    assert estimate.work(jobs["train/llama@0+cot"]).flops > 0
    assert estimate.work(jobs["train/llama@0+cot+heal"]) is None
    assert estimate.unknown() == {"far": "some/model"}


def test_self_distillation_reads_two_sequences():
    stage = Codi(kind="codi", latents=2, training=STEP, drop_last_step=True).stages()[0]
    student, chain = forward(5 + 4 + 2, logits=2), forward(5 + 3 + 2, logits=5)
    # Two latents go through two matrices of 16 by 16 each.
    projected = 2 * 2 * 2 * 16 * 16
    assert course(stage, steps=1).learning(SHAPE).flops == pytest.approx(
        4 * 3 * (student + chain + projected)
    )


def test_answers_at_once():
    """The prompt of 5 tokens with one position of the head, then one pass for the second token."""
    asked = work.asking(NoCot(kind="no_cot", training=STEP).stages()[0], [ROW], 48)
    assert asked.lengths == ((5, 2),)
    found = work.answering(asked, SHAPE, 7, 4)
    assert found.flops == found.written == 7 * (forward(5, logits=1) + forward(1, 5, 1))
    # Two batches of 2 passes through 2 layers.
    assert found.layers == 8


def test_an_answer_is_as_long_as_a_right_one_or_the_limit():
    methods = {
        8: Cot(kind="cot", training=STEP).stages()[0],
        2: IcotKd(kind="icot_kd", training=STEP).stages()[2],
        5: Coconut(kind="coconut", max_latent_stage=2, training=STEP).stages()[1],
    }
    for length, stage in methods.items():
        assert work.asking(stage, [ROW], 48).lengths == ((5, length),)
        assert work.asking(stage, [ROW], 1).lengths == ((5, 1),)


def test_latents_are_fed_before_the_answer():
    asked = work.asking(Coconut(kind="coconut", max_latent_stage=2, training=STEP).stages()[3], [ROW], 48)
    # The question with the start marker; the first latent; the second with the end marker; a token.
    expected = forward(6) + forward(1, 6) + forward(2, 7, 1) + forward(1, 9, 1)
    assert work.answering(asked, SHAPE, 1, 1).flops == expected
    more = work.answering(work.with_latents(asked, 3), SHAPE, 1, 1).flops
    assert more == forward(6) + forward(1, 6) + forward(1, 7) + forward(2, 8, 1) + forward(1, 10, 1)


def test_worked_examples_are_read_once():
    asked = work.asking_by_examples(FewShot(kind="few_shot", num_fewshot=2), [ROW], 48)
    # Two examples of question, chain, answer and ten tokens more; then the question with four.
    assert asked.known == 2 * 23
    assert asked.lengths == ((46 + 9, 11),)
    first = forward(9, 46, 1)
    decoded = sum(forward(1, 55 + index, 1) for index in range(10))
    assert work.answering(asked, SHAPE, 3, 8).flops == 3 * (first + decoded)


def test_a_tasks_own_examples_are_as_long_as_they_are():
    """Sentences, where the task's rows have equations; the answers are as long as these on average."""
    worked = [
        TokenRow("a", question=[1] * 7, steps=[[1] * 9, [1] * 4], answer=[1] * 3),
        TokenRow("b", question=[1] * 4, steps=[[1] * 8], answer=[1] * 2),
        TokenRow("not shown", question=[1] * 99, steps=[], answer=[1]),
    ]
    asked = work.asking_by_examples(FewShot(kind="few_shot", num_fewshot=2), [ROW, ROW], 48, worked)
    assert asked.known == (7 + 16 + 10) + (4 + 10 + 10)
    assert asked.lengths == ((asked.known + 9, 13 + 3),) * 2


def test_reading_whole_rows():
    forward_only = work.reading([ROW], SHAPE, 10, 4)
    assert forward_only == Work(10 * forward(13, logits=8), 3 * 2)
    assert work.reading([ROW], SHAPE, 10, 4, learns=True) == Work(30 * forward(13, logits=8), 3 * 3 * 2)


def test_a_greedy_search_tries_each_layer_that_is_left(make_workflow, tmp_path):
    """Of 4 layers 4 candidates for one that goes, and 4 + 3 + 2 for the three that can."""

    def searched(budget, **importance):
        step = {"kind": "prune", "unit": "layers", "metric": "greedy_loss", "budget": budget}
        changes = {"bases__llama__from_scratch__layers": 4, "steps__search": step, "importance": importance}
        workflow = make_workflow(**changes, recipes=[["cot", "search"]])
        estimate = Estimate(workflow, tmp_path, made=set())
        (job,) = (job for job in jobs_of(workflow).values() if job.verb == "score")
        return estimate.work(job).flops

    one = searched({"count": 1})
    assert one == searched({"flops": 0.9}, greedy_removals=1)
    assert searched({"flops": 0.9}) == searched({"count": 3}) == pytest.approx(one * 9 / 4)
    assert searched({"flops": 0.9}, greedy_protect=[2]) == pytest.approx(one * 6 / 4)
