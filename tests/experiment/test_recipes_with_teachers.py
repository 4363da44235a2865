"""The recipe tree where models learn from others, think in latents, or are asked by worked examples."""

import copy
import re

import pytest
from test_recipes import CONFIG, TRAINING, tree_of, with_step

from copra.experiment.config import parse
from copra.tasks.gsm8k import Gsm8k
from copra.utils.errors import CopraError
from copra.utils.files import file_sha256


def taught_by(*teachers, **more):
    """All steps, with an iCoT-KD step `kd0`, `kd1`, .. for each of these teachers."""
    kind = {"kind": "icot_kd", "training": TRAINING}
    named = {f"kd{n}": {**kind, "teacher": teacher} for n, teacher in enumerate(teachers)}
    return {**copy.deepcopy(CONFIG["steps"]), **named, **more}


def test_a_node_has_the_latents_that_its_stage_ends_with():
    steps = with_step("pause", kind="pause", pauses=5, training=TRAINING)
    steps |= with_step("codi", kind="codi", latents=4, training=TRAINING)
    steps |= with_step("coconut", latents_per_step=3)
    nodes = tree_of([["cot", "coconut", "drop-1"], ["cot", "pause", "few_shot"], ["codi"]], steps=steps).nodes
    assert {name.removeprefix("llama@0"): node.latents for name, node in nodes.items()} == {
        "": 0,
        "+cot": 0,
        "+cot+coconut.0": 0,
        "+cot+coconut.1": 3,
        "+cot+coconut.2": 6,
        "+cot+coconut": 6,
        # A pruned model goes on as before, a prompted one does not.
        "+cot+coconut+drop-1": 6,
        "+cot+pause": 5,
        "+cot+pause+few_shot": 0,
        "+codi": 4,
    }


def test_a_decoder_starts_as_the_first_model_of_its_shape():
    """In the first stage of a step; later ones go on with it."""
    decoder = {"decoder": "pretrained"}
    steps = with_step("coconut", auxiliary_decoder=decoder)
    steps["codi"] = {"kind": "codi", "auxiliary_decoder": decoder, "training": TRAINING}
    recipes = [
        {"base": "hub", "steps": each} for each in (["codi"], ["cot", "coconut"], ["drop-1", "cot", "codi"])
    ]
    recipes += [["cot", "drop-1", "few_shot", "cot-2", "codi"]]
    steps["cot-2"] = steps["cot"]
    nodes = tree_of(recipes, steps=steps).nodes
    assert {name: node.pretrained for name, node in nodes.items() if node.pretrained} == {
        "hub+codi@0": "hub",
        "hub+cot@0+coconut.0": "hub",
        "hub+drop-1+cot@0+codi": "hub+drop-1",
        "llama@0+cot+drop-1+few_shot+cot-2+codi": "llama@0+cot+drop-1",
    }
    with pytest.raises(
        CopraError, match="'codi' starts its decoder as a base from scratch, which knows nothing"
    ):
        tree_of([["cot", "codi"]], steps=steps)


def test_the_model_that_icot_kd_starts_from_teaches_its_first_two_trainings():
    nodes = tree_of([["cot", "drop-1", "scratchpad", "icot_kd"]]).nodes
    start = "llama@0+cot+drop-1+scratchpad"
    taught = {name: (node.teacher, node.answers) for name, node in nodes.items() if node.step == "icot_kd"}
    assert taught == {
        f"{start}+icot_kd.0": (start, False),
        f"{start}+icot_kd.1": (start, True),
        f"{start}+icot_kd": (None, True),
    }
    assert {node.teacher for node in nodes.values() if node.step != "icot_kd"} == {None}


@pytest.mark.parametrize("start", [["cot"], ["cot", "drop-1"], ["cot", "few_shot"], ["no_cot", "cot"]])
def test_a_chain_is_written_after_a_pruning_or_a_prompt_too(start):
    nodes = tree_of([[*start, "icot_kd"]]).nodes
    parent = "+".join(["llama@0", *start])
    assert nodes[f"{parent}+icot_kd.0"].teacher == parent


def test_a_named_teacher_is_a_node_of_the_same_seed():
    steps = taught_by("llama+no_cot+cot", "hub+drop-1+cot")
    tree = tree_of([["no_cot", "kd0"], ["cot", "kd1"], ["no_cot", "cot"]], seeds=(3, 4), steps=steps)
    for seed in (3, 4):
        taught = tree.nodes[f"llama@{seed}+no_cot+kd0.0"], tree.nodes[f"llama@{seed}+cot+kd1.1"]
        assert [node.teacher for node in taught] == [f"llama@{seed}+no_cot+cot", f"hub+drop-1+cot@{seed}"]
    # The one was a recipe in any case; the other was grown, and is none for that.
    assert [end.recipe for end in tree.recipes] == ["llama+no_cot+kd0", "llama+cot+kd1", "llama+no_cot+cot"]
    assert sum(name.startswith("hub") for name in tree.nodes) == 2 + 2
    places = {name: place for place, name in enumerate(tree.nodes)}
    for node in tree.nodes.values():
        assert all(places[other] < places[node.name] for other in (node.parent, node.teacher) if other)


def test_a_teacher_may_have_had_a_teacher():
    steps = taught_by("llama+cot", "llama+cot+kd0+scratchpad")
    nodes = tree_of([["cot", "kd1"]], steps=steps).nodes
    assert nodes["llama@0+cot+kd1.0"].teacher == "llama@0+cot+kd0+scratchpad"
    assert nodes["llama@0+cot+kd0.0"].teacher == "llama@0+cot"


def healing(teacher=None, kind="cot", **more):
    """All steps, with a step `heal` that learns a teacher's predictions."""
    distil = {"teacher": teacher} | {key: more.pop(key) for key in ("task_weight", "weight") if key in more}
    return with_step("heal", kind=kind, training=TRAINING, distil=distil, **more)


@pytest.mark.parametrize(
    ("recipe", "parent", "teacher"),
    [
        (["cot", "drop-1", "heal"], "llama@0+cot+drop-1", "llama@0+cot"),
        (["cot", "drop-1", "lowest", "heal"], "llama@0+cot+drop-1+lowest", "llama@0+cot"),
        # A prompt changes no weight.
        (["cot", "drop-1", "few_shot", "heal"], "llama@0+cot+drop-1+few_shot", "llama@0+cot"),
        (["cot", "few_shot", "drop-1", "heal"], "llama@0+cot+few_shot+drop-1", "llama@0+cot"),
        # What was pruned before the last training has no dense model any more that learned what it did.
        (["drop-1", "cot", "lowest", "heal"], "hub+drop-1+cot@0+lowest", "hub+drop-1+cot@0"),
        # A model of the Hub may be healed before it learns anything.
        (["drop-1", "heal"], "hub+drop-1", "hub"),
    ],
)
def test_the_model_before_the_prunings_heals(recipe, parent, teacher):
    base = parent.split("+")[0].split("@")[0]
    nodes = tree_of([{"base": base, "steps": recipe}], steps=healing()).nodes
    node = list(nodes.values())[-1]
    assert (node.step, node.parent, node.teacher) == ("heal", parent, teacher)
    assert node.settings["stage"]["distil"] == {"weight": 1.0, "temperature": 1.0, "task_weight": 0.0}
    assert {each.teacher for each in nodes.values() if each is not node} == {None}


def test_beside_its_own_loss_a_step_may_learn_from_the_model_that_it_starts_from():
    nodes = tree_of([["cot", "heal"]], steps=healing(task_weight=1.0)).nodes
    assert nodes["llama@0+cot+heal"].teacher == "llama@0+cot"


def test_one_teacher_serves_all_stages():
    steps = healing(kind="coconut", max_latent_stage=1)
    nodes = tree_of([["cot", "drop-1", "heal"]], steps=steps).nodes
    taught = [node for node in nodes.values() if node.step == "heal"]
    assert [node.stage for node in taught] == [0, 1, 2]
    assert {node.teacher for node in taught} == {"llama@0+cot"}
    assert {node.latents for node in taught} == {0, 1}


def test_a_named_teacher_of_predictions_is_grown_with_the_seed():
    steps = healing("llama+cot+coconut", kind="coconut", max_latent_stage=2)
    tree = tree_of([["cot", "drop-1", "heal"]], seeds=(3, 4), steps=steps)
    for seed in (3, 4):
        assert tree.nodes[f"llama@{seed}+cot+drop-1+heal"].teacher == f"llama@{seed}+cot+coconut"
    assert [end.recipe for end in tree.recipes] == ["llama+cot+drop-1+heal"]
    places = {name: place for place, name in enumerate(tree.nodes)}
    for node in tree.nodes.values():
        assert all(places[other] < places[node.name] for other in (node.parent, node.teacher) if other)


def test_who_teaches_is_no_setting_of_a_node():
    first, second = (
        tree_of([["cot", "drop-1", "heal"]], steps=healing(teacher)).nodes["llama@0+cot+drop-1+heal"]
        for teacher in (None, "hub+cot")
    )
    assert (first.teacher, second.teacher) == ("llama@0+cot", "hub+cot@0")
    assert first.settings == second.settings


@pytest.mark.parametrize("teacher", ["hub", "hub+few_shot", "hub+drop-1"])
def test_a_model_of_the_hub_may_teach_as_it_is(teacher):
    assert tree_of([["cot", "heal"]], steps=healing(teacher)).recipes


NOTHING = "'heal' starts from its own teacher, so there is nothing to learn"


@pytest.mark.parametrize(
    ("recipe", "steps", "message"),
    [
        (["heal"], healing(), "'heal' learns from a base from scratch, which knows nothing"),
        (["lowest", "heal"], healing(), "'heal' learns from a base from scratch, which knows nothing"),
        (["cot", "heal"], healing(), NOTHING),
        (["cot", "drop-1", "no_cot", "heal"], healing(), NOTHING),
        (["cot", "few_shot", "heal"], healing(), NOTHING),
        (["cot", "heal"], healing("llama"), "teacher of 'heal': never trains"),
        (["cot", "heal"], healing(""), "teacher of 'heal': '' is not in bases"),
        (["cot", "heal"], healing("llama+cto"), "teacher of 'heal': 'cto' is not in steps"),
        (["cot", "heal"], healing("llama+cot+heal"), "'heal' has itself for a teacher: 'llama+cot+heal'"),
        (
            ["cot", "drop-1", "heal"],
            healing(kind="codi"),
            "'heal' has latents with latent_input: projected, and its teacher has none: name a teacher",
        ),
        (
            ["cot", "drop-1", "heal"],
            healing("llama+cot+coconut", kind="coconut", latent_input="scaled"),
            "'heal' has latents with latent_input: scaled, and its teacher with raw: name a teacher",
        ),
    ],
)
def test_a_teacher_of_predictions_that_cannot_be_is_named(recipe, steps, message):
    with pytest.raises(CopraError, match=re.escape(f": {message}")) as caught:
        tree_of([["no_cot"], recipe], steps=steps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (healing(kind="icot_kd"), "steps.heal.distil: icot_kd has a way of its own to learn from a teacher"),
        (
            healing(kind="codi", auxiliary_decoder={}),
            "steps.heal.distil.task_weight: at 0 the method's own loss is",
        ),
        (healing(weight=0), "steps.heal.distil.weight: should be greater than 0"),
        (healing(3), "steps.heal.distil.teacher: should be text"),
    ],
)
def test_a_problem_of_a_distillation_names_its_key(steps, message):
    with pytest.raises(CopraError, match=re.escape(f"config.yaml: {message}")):
        tree_of([["cot", "heal"]], steps=steps)


def test_a_teacher_may_feed_its_latents_as_its_pupil_does():
    codi = {"kind": "codi", "training": TRAINING}
    steps = healing("llama+codi", kind="codi") | {"codi": codi}
    assert tree_of([["codi", "drop-1", "heal"]], steps=steps).recipes
    # Where no hidden state is fed, nothing has to agree.
    assert tree_of([["cot", "drop-1", "heal"]], steps=healing(kind="pause")).recipes
    assert tree_of([["cot", "drop-1", "heal"]], steps=healing("llama+codi") | {"codi": codi}).recipes


WRITES = "does not write its chain of thought"


@pytest.mark.parametrize(
    ("teachers", "recipe", "message"),
    [
        (
            [],
            ["icot_kd"],
            "'icot_kd' learns from the model before it, which has to write its chain of thought",
        ),
        ([], ["cot", "no_cot", "icot_kd"], "'icot_kd' learns from the model before it"),
        ([], {"base": "hub", "steps": ["few_shot", "icot_kd"]}, "'icot_kd' learns from the model before it"),
        (["llama+no_cot"], ["cot", "kd0"], f"teacher of 'kd0': 'llama+no_cot' {WRITES}"),
        (["llama+cot+coconut"], ["cot", "kd0"], f"teacher of 'kd0': 'llama+cot+coconut' {WRITES}"),
        (["hub+few_shot"], ["cot", "kd0"], f"teacher of 'kd0': 'hub+few_shot' {WRITES}"),
        (["llama"], ["cot", "kd0"], "teacher of 'kd0': never trains"),
        (["lama+cot"], ["cot", "kd0"], "teacher of 'kd0': 'lama' is not in bases (did you mean 'llama'?)"),
        (["llama+cto"], ["cot", "kd0"], "teacher of 'kd0': 'cto' is not in steps (did you mean 'cot'?)"),
        (["llama@0+cot"], ["cot", "kd0"], "teacher of 'kd0': 'llama@0' is not in bases"),
        (["llama+cot+kd0"], ["cot", "kd0"], "'kd0' has itself for a teacher: 'llama+cot+kd0'"),
        (["llama+cot+kd0+scratchpad"], ["cot", "kd0"], "'kd0' has itself for a teacher"),
        (
            ["llama+cot+kd1+scratchpad", "llama+cot+kd0+scratchpad"],
            ["cot", "kd0"],
            "teacher of 'kd0': 'kd0' has itself for a teacher: 'llama+cot+kd0+scratchpad'",
        ),
    ],
)
def test_a_teacher_that_cannot_teach_is_named(teachers, recipe, message):
    with pytest.raises(CopraError, match=re.escape(f": {message}")) as caught:
        tree_of([["no_cot"], recipe], steps=taught_by(*teachers))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("apart", [1, 2], ids=["one teacher each", "two teachers each"])
@pytest.mark.parametrize("listed", ["the last alone", "all"])
def test_a_chain_of_teachers_is_refused_beyond_its_limit_and_in_no_time(apart, listed):
    steps = {"s0": {"kind": "cot", "training": TRAINING}}
    for number in range(1, 300):
        before = [f"s{number - back}" for back in range(1, apart + 1) if number >= back]
        steps[f"s{number}"] = {
            "kind": "cot",
            "training": TRAINING,
            "distil": {"teacher": "+".join(["llama", *before])},
        }

    def recipes(last):
        return [[f"s{last}"]] if listed == "the last alone" else [[f"s{n}"] for n in range(last + 1)]

    assert tree_of(recipes(20), steps=steps).nodes
    for last in (21, 299):
        with pytest.raises(CopraError, match="more than 20 teachers learn one from the other") as caught:
            tree_of(recipes(last), steps=steps)
        assert "\n" not in str(caught.value)


def test_a_problem_behind_many_teachers_is_found_once_and_in_no_time():
    """Of 2^19 ways to it one is named."""
    steps = {"s0": {"kind": "cot", "training": TRAINING, "distil": {"teacher": "lama"}}}
    for number in range(1, 20):
        before = [f"s{number - back}" for back in (1, 2) if number >= back]
        distil = {"teacher": "+".join(["llama", *before])}
        steps[f"s{number}"] = {"kind": "cot", "training": TRAINING, "distil": distil}
    with pytest.raises(CopraError, match="'lama' is not in bases") as caught:
        tree_of([["s19"]], steps=steps)
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize("between", [[], ["few_shot"]])
def test_nothing_is_pruned_after_icot_kd(between):
    with pytest.raises(CopraError, match=r"'drop-1' prunes after icot_kd, .*: prune before it$"):
        tree_of([["cot", "icot_kd", *between, "drop-1"]])
    # A later training has no such parts.
    assert tree_of([["cot", "icot_kd", *between, "no_cot", "drop-1"]]).recipes


def test_a_prompt_is_a_node_that_changes_the_way_to_answer():
    tree = tree_of([["cot", "drop-1", "few_shot"], {"base": "hub", "steps": ["few_shot", "drop-1"]}])
    node = tree.nodes["llama@0+cot+drop-1+few_shot"]
    assert (node.kind, node.parent, node.stage, node.seed) == ("prompt", "llama@0+cot+drop-1", None, 0)
    assert (node.method, node.task, node.trained) == ("few_shot", "sums", node.name)
    assert node.settings == {"prompt": parse(CONFIG).steps["few_shot"].canonical()}
    # No seed enters with a prompt: its own draws the examples.
    assert (tree.nodes["hub+few_shot"].seed, tree.nodes["hub+few_shot+drop-1"].method) == (None, "few_shot")
    assert [(end.method, end.pruning) for end in tree.recipes] == [("few_shot", "drop-1")] * 2
    assert tree.recipes[1].nodes == ("hub+few_shot+drop-1",)


def test_a_prompt_before_the_first_training_leaves_the_task_free():
    nodes = tree_of([{"base": "hub", "steps": ["few_shot", "elsewhere"]}]).nodes
    assert nodes["hub+few_shot+elsewhere@0"].task == "others"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (["few_shot"], "'few_shot' prompts a base from scratch, which knows nothing"),
        (["few_shot", "cot"], "'few_shot' prompts a base from scratch, which knows nothing"),
        (
            ["texts", "few_shot"],
            "'few_shot' takes a number for the answer; 'proofs' needs answer: strict",
        ),
    ],
)
def test_a_prompt_that_cannot_be_is_named(recipe, message):
    tasks = CONFIG["tasks"] | {"proofs": {"kind": "prosqa"}}
    steps = with_step("texts", kind="cot", task="proofs", training=TRAINING)
    with pytest.raises(CopraError, match=re.escape(message)):
        tree_of([recipe], tasks=tasks, steps=steps)
    strict = steps | {"few_shot": {"kind": "few_shot", "answer": "strict"}}
    assert tree_of([["texts", "few_shot"]], tasks=tasks, steps=strict).recipes


def test_a_prompt_depends_on_the_examples_that_copra_has_for_its_task():
    tasks = CONFIG["tasks"] | {"gsm8k": {"kind": "gsm8k"}}
    steps = with_step("cot", task="gsm8k")
    steps |= {
        "drawn": {"kind": "few_shot", "examples": "train"},
        "many": {"kind": "few_shot", "num_fewshot": 9},
    }
    nodes = tree_of([["cot", "few_shot"], ["cot", "drawn"]], tasks=tasks, steps=steps).nodes
    worked = nodes["llama@0+cot+few_shot"].settings["worked"]
    assert worked == {"task": "gsm8k", "sha256": file_sha256(Gsm8k.worked_examples)}
    assert "worked" not in nodes["llama@0+cot+drawn"].settings
    with pytest.raises(CopraError, match=r"'many' asks for 9 examples, and copra has 8 for 'gsm8k': lower"):
        tree_of([["cot", "many"]], tasks=tasks, steps=steps)
    assert tree_of([["cot", "many"]], steps=CONFIG["steps"] | {"many": steps["many"]}).recipes
