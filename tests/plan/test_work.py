"""Work of jobs, against FLOPs counted by hand.

A layer of width 16 with 4 query heads and 2 KV heads of size 4 and an FFN of 32 costs, for T tokens over P
cached ones, 2 T 16 4 (8 + 4) = 1536 T in projections, 4 T (P + T) 16 in scores and 2 T 3 16 32 = 3072 T in
the FFN; a position of the LM head with 50 tokens costs 2 16 50 = 1600.
"""

import pytest

from copra.cost.flops import of_training_work
from copra.data.sequences import TokenRow
from copra.methods import Coconut, Cot, IcotKd, NoCot
from copra.methods.few_shot import FewShot
from copra.plan.estimate import Estimate
from copra.plan.jobs import Job
from copra.plan.rows import TaskRows
from copra.plan.stages import few_shot_prompts, trained_prompts, training_schedule
from copra.plan.work import answering_work, work_of
from copra.schema.loop import Loop
from copra.schema.shape import LayerShape, ModelShape
from copra.schema.training import Training
from copra.tasks.word_sums import WordSums

SHAPE = ModelShape("llama", 16, 50, 3, (LayerShape(4, 2, 4, 32),) * 2)
# 5 tokens of the question, two steps of 3, 2 of the answer: 13, of which 8 are supervised in CoT.
ROW = TokenRow("a", [0] * 5, [[0] * 3, [0] * 3], [0] * 2)
SIZES = {"train": 100, "valid": 10, "test": 10}
STEP = {"steps": 1}


def task_rows(*train, sizes=SIZES):
    rows = {"train": list(train or [ROW]), "valid": [ROW] * 2, "test": [ROW]}
    return TaskRows(sizes, rows, [], len, None, True, [])


def forward(tokens: int, past: int = 0, logits: int = 0, layers: int = 2) -> int:
    return layers * (4608 * tokens + 64 * tokens * (past + tokens)) + 1600 * logits


def schedule(stage, rows=None, **training):
    settings = Training(**{"batch_size": 4, "num_validations": 2, "learning_rate": 1e-3, **training})
    return training_schedule(stage, settings, rows or task_rows(), 1)


COT = Cot(kind="cot", training=STEP).stages()[0]


def test_training_with_chain_of_thought():
    found = schedule(COT, steps=10)
    assert of_training_work(SHAPE, found.training_work) == pytest.approx(40 * 3 * forward(13, logits=8))
    validation = of_training_work(SHAPE, found.validation_work, backward=False)
    assert validation == pytest.approx(10 * forward(13, logits=8))
    assert (found.micro_batches, found.depth, found.batches, found.tokens, found.logits) == (1, 1, 3, 52, 32)
    small = schedule(COT, steps=10, micro_batch_size=2)
    assert (small.micro_batches, small.tokens, small.logits) == (2, 26, 16)
    assert schedule(COT, steps=10, micro_batch_tokens=13).micro_batches == 4


def test_epochs_take_the_last_batch_as_it_is():
    """10 rows in batches of 4: 3 batches per epoch, and 10 rows."""
    rows = task_rows(sizes={"train": 10, "valid": 2, "test": 1})
    for epochs, steps, number in ((1, 3, 10), (2, 6, 20), (1 / 3, 1, 4), (5 / 3, 5, 18)):
        found = schedule(COT, rows, epochs=epochs)
        assert found.steps == steps
        assert found.training_work["model"]["tokens"] == pytest.approx(number * 13)


def test_rows_that_are_too_long_are_left_out():
    short = TokenRow("b", [0] * 5, [[0] * 3], [0] * 2)
    found = schedule(COT, task_rows(ROW, short), batch_size=50, epochs=1, max_tokens=10)
    assert (found.steps, found.training_work["model"]["tokens"]) == (1, 50 * 10)


def test_latents_stand_for_steps_and_wait_for_one_another():
    """The last of three stages: question, start, two latents, end, answer."""
    found = schedule(Coconut(kind="coconut", max_latent_stage=2, training=STEP).stages()[3], steps=1)
    expected = 4 * 3 * forward(5 + 1 + 2 + 1 + 2, logits=2)
    assert of_training_work(SHAPE, found.training_work) == pytest.approx(expected)
    assert found.depth == 3


def test_an_answer_is_as_long_as_a_right_one_or_the_limit():
    stages = {
        8: COT,
        2: IcotKd(kind="icot_kd", training=STEP).stages()[2],
        5: Coconut(kind="coconut", max_latent_stage=2, training=STEP).stages()[1],
    }
    for length, stage in stages.items():
        assert trained_prompts(stage, [ROW], 48).lengths == ((5, length),)
        assert trained_prompts(stage, [ROW], 1).lengths == ((5, 1),)


def test_answers_are_written_token_by_token():
    """The prompt of 5 tokens with one position of the head, then one pass for the second token."""
    found = answering_work(
        trained_prompts(NoCot(kind="no_cot", training=STEP).stages()[0], [ROW], 48), SHAPE, 7, 4
    )
    assert found.flops == found.answers == 7 * (forward(5, logits=1) + forward(1, 5, 1))
    # Two batches of 2 passes through 2 layers.
    assert found.layers == 8


LOOP = {"layers": [1, 1], "times": 3}


def test_every_visit_of_a_looped_layer_is_work(make_workflow, tmp_path):
    """2 layers of which one is run 3 times: trained and answered with, and by later trainings run once."""
    step = {"kind": "looped", "loop": LOOP, "training": {"steps": 10, "batch_size": 4, "num_validations": 1}}
    once = {**step, "kind": "no_cot"}
    del once["loop"]
    workflow = make_workflow(
        steps__looped=step,
        steps__once=once,
        bases__llama__from_scratch__layers=2,
        recipes=[["looped"], ["once"], ["looped", "once"]],
    )
    estimate = Estimate(workflow, tmp_path, set())

    def work(rule, name):
        return work_of(estimate, Job(rule, name, (), tmp_path, tmp_path, (), False), 0)

    for rule in ("train", "evaluate"):
        looped, plain = (work(rule, f"llama@0+{name}") for name in ("looped", "once"))
        assert looped.layers == 2 * plain.layers
        # All but the LM head doubles.
        assert 1.5 * plain.flops < looped.flops < 2 * plain.flops
        assert work(rule, "llama@0+looped+once") == plain
    shape = estimate.shape("llama@0+looped")
    assert len(shape.layers) == 2
    assert estimate.computed_shape("llama@0+looped") == shape.looped(Loop(**LOOP))
    assert estimate.sizes("llama@0+looped") == estimate.sizes("llama@0+once")
    memory = [estimate.memory_bytes(f"llama@0+{name}", 0) for name in ("looped", "once")]
    assert memory[0] > memory[1]


def test_worked_examples_are_read_once():
    """Without text, two examples as long as typical rows; templates count by letters here."""
    prompt = FewShot(kind="few_shot", num_fewshot=2, question="{question}")
    stats = few_shot_prompts(prompt, WordSums(), task_rows(), [ROW], 48)
    template = len("{question}")
    assert stats.cached == 2 * (5 + 8)
    assert stats.lengths == ((26 + 5 + template, max(1, 13 - 5 - template)),)
    assert answering_work(stats, SHAPE, 3, 8).flops == 3 * forward(5 + template, 26, 1)


@pytest.mark.slow
def test_a_greedy_search_tries_each_layer_that_is_left(make_workflow, tmp_path):
    """Of 4 layers 4 candidates for one that goes, and 4 + 3 + 2 for the three that can."""

    def searched(budget, **importance):
        step = {"kind": "prune", "unit": "layers", "metric": "greedy_loss", "budget": budget}
        changes = {"bases__llama__from_scratch__layers": 4, "steps__search": step, "importance": importance}
        workflow = make_workflow(**changes, recipes=[["cot", "search"]])
        name = workflow.within("scores", workflow.scored[0]).removesuffix(".json")
        job = Job("score", name, (), tmp_path, tmp_path, (), False)
        return work_of(Estimate(workflow, tmp_path, set()), job, 0).flops

    one = searched({"count": 1})
    assert one == searched({"flops": 0.9}, greedy_removals=1)
    assert searched({"flops": 0.9}) == searched({"count": 3}) == pytest.approx(one * 9 / 4)
    assert searched({"flops": 0.9}, greedy_protect=[2]) == pytest.approx(one * 6 / 4)


def test_every_question_is_answered_but_for_the_lens(make_workflow, tmp_path):
    sources = ["other", "zeros", "drop_last"]
    workflow = make_workflow(evaluation__latents=[0, 3], evaluation__lens=2, evaluation__latents_from=sources)
    name, estimate = "llama@0+cot+drop-1+coconut", Estimate(workflow, tmp_path, set())
    flops = {
        rule: work_of(estimate, Job(rule, name, (), tmp_path, tmp_path, (), False), 0).flops
        for rule in ("evaluate", "logit_lens", "sweep_latents", "swap_latents")
    }
    assert flops["logit_lens"] == pytest.approx(flops["evaluate"] * 2 / 60)
    assert flops["sweep_latents"] > 2 * flops["evaluate"]
    # Its own answers, those of three sources, and the latents of all questions up to the first token.
    assert 4 * flops["evaluate"] < flops["swap_latents"] < 5 * flops["evaluate"]


def test_a_conversion_answers_once_for_the_checkpoint_and_once_per_format(make_workflow, tmp_path):
    name, formats = "llama@0+cot+drop-1+coconut", ["executorch-f32", "executorch-int8"]
    asked = {"recipes": ["llama+cot+drop-1+coconut"], "formats": formats, "questions": 29}
    workflow = make_workflow(conversions=asked, evaluation__batch_size=30)
    evaluated, converted = (
        work_of(Estimate(workflow, tmp_path, set()), Job(rule, name, (), tmp_path, tmp_path, (), False), 0)
        for rule in ("evaluate", "convert")
    )
    # 29 of 60 questions and one to warm up, three times; each question alone and not 30 together.
    assert converted.flops == pytest.approx(evaluated.flops * 3 / 2)
    assert converted.layers == evaluated.layers * 3 * 30 / 2


@pytest.mark.slow
def test_questions_of_another_task_are_as_many_and_as_long_as_they_are(make_workflow, tmp_path):
    longer = {"kind": "word_sums", "train": 1, "valid": 1, "test": 120, "min_steps": 6, "max_steps": 6}
    (tmp_path / "told.csv").write_text("question,answer\n" + "\n".join(f"{n}?,{n}" for n in range(30)))
    tasks = {"tasks__longer": longer, "tasks__told": {"kind": "rows", "test": str(tmp_path / "told.csv")}}
    workflow = make_workflow(**tasks, evaluation__tasks=["longer", "told"])
    estimate = Estimate(workflow, tmp_path, set())

    def flops(name):
        return work_of(estimate, Job("evaluate", name, (), tmp_path, tmp_path, (), False), 0).flops

    for name in ("llama@0+cot+no-cot", "llama@0+cot+ask"):
        assert flops(f"longer/{name}") > 2 * flops(name) > 4 * flops(f"told/{name}")
    longest = estimate.rows("longer/llama@0+cot").rows["test"]
    assert all(len(row.steps) == 6 for row in longest)


def test_where_a_teacher_is_not_known_the_training_is_not(make_workflow, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    heal = {"kind": "cot", "distil": {"teacher": "far+cot"}, "training": STEP}
    bases = make_workflow().experiment.bases["llama"].canonical()
    workflow = make_workflow(
        bases={"llama": bases, "far": {"path": "some/model"}}, steps__heal=heal, recipes=[["cot", "heal"]]
    )
    estimate = Estimate(workflow, tmp_path, set())

    def work(name):
        return work_of(estimate, Job("train", name, (), tmp_path, tmp_path, (), False), 0)

    assert work("llama@0+cot").flops > 0
    assert work("llama@0+cot+heal") is None
    assert estimate.unknown() == {"far": "some/model"}
