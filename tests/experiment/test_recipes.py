"""The recipe tree: shared prefixes, names, seeds, settings, and what cannot be a recipe."""

import copy
import re

import pytest

from copra.experiment.config import parse
from copra.experiment.recipes import build_tree, without_seed
from copra.utils.errors import CopraError
from helpers.tiny import DROP, tiny_config

TRAINING = {"steps": 8, "batch_size": 16}
GPT2 = {"architecture": "gpt2", "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32}
CONFIG = tiny_config(
    tasks={"sums": {"kind": "word_sums"}, "others": {"kind": "word_sums", "seed": 1}},
    bases__llama__from_scratch__layers=4,
    bases__hub={"path": "HuggingFaceTB/SmolLM2-135M"},
    bases__gpt2={"from_scratch": GPT2},
    steps={
        "cot": {"kind": "cot", "training": TRAINING},
        "no_cot": {"kind": "no_cot", "training": TRAINING},
        "looped": {"kind": "looped", "loop": {"times": 3}, "training": TRAINING},
        "elsewhere": {"kind": "cot", "task": "others", "training": TRAINING},
        "coconut": {"kind": "coconut", "max_latent_stage": 2, "training": TRAINING},
        "drop-1": DROP,
        "lowest": {**DROP, "metric": "deepest"},
        "dice": {**DROP, "metric": "random"},
        "groups-1": {"kind": "prune", "unit": "kv_groups", "metric": "gradient", "budget": {"fraction": 0.5}},
        "by-accuracy": {**DROP, "metric": "accuracy"},
        "on-latents": {**DROP, "metric": "taylor", "objective": "latent"},
        "on-text": {
            "kind": "prune",
            "unit": "neurons",
            "metric": "taylor",
            "objective": "text",
            "budget": {"fraction": 0.5},
        },
        "scratchpad": {"kind": "scratchpad", "curriculum": False, "training": TRAINING},
        "icot_kd": {"kind": "icot_kd", "training": TRAINING},
        "few_shot": {"kind": "few_shot", "num_fewshot": 2, "seed": 5},
        "int8": {"kind": "quantize", "weights": "int8"},
    },
)


def tree_of(recipes, seeds=(0,), **changes):
    return build_tree(parse({**copy.deepcopy(CONFIG), "recipes": recipes, "seeds": list(seeds), **changes}))


def with_step(name, **changes):
    """All steps, with keys of one of them changed, or with a new one."""
    steps = copy.deepcopy(CONFIG["steps"])
    steps[name] = steps.get(name, {}) | changes
    return steps


def test_a_shared_prefix_is_there_once():
    tree = tree_of([["cot"], ["cot", "drop-1"], ["cot", "drop-1", "no_cot"], ["cot", "no_cot"]])
    assert list(tree.nodes) == [
        "llama@0",
        "llama@0+cot",
        "llama@0+cot+drop-1",
        "llama@0+cot+drop-1+no_cot",
        "llama@0+cot+no_cot",
    ]


def test_every_parent_comes_before_its_children():
    tree = tree_of([["cot", "drop-1", "coconut"], {"base": "hub", "steps": ["drop-1", "cot"]}], seeds=(0, 1))
    seen = set()
    for name, node in tree.nodes.items():
        assert name == node.name
        assert node.parent is None or node.parent in seen
        seen.add(name)


def test_each_stage_is_a_node_and_the_last_bears_the_steps_name():
    tree = tree_of([["cot", "coconut", "drop-1"]])
    assert [(node.name, node.parent, node.stage) for node in list(tree.nodes.values())[2:]] == [
        ("llama@0+cot+coconut.0", "llama@0+cot", 0),
        ("llama@0+cot+coconut.1", "llama@0+cot+coconut.0", 1),
        ("llama@0+cot+coconut.2", "llama@0+cot+coconut.1", 2),
        ("llama@0+cot+coconut", "llama@0+cot+coconut.2", 3),
        ("llama@0+cot+coconut+drop-1", "llama@0+cot+coconut", None),
    ]
    assert tree.nodes["llama@0+cot"].stage is None


def test_a_step_of_a_single_stage_is_a_single_node():
    tree = tree_of([["cot", "coconut"]], steps=with_step("coconut", curriculum=False))
    assert list(tree.nodes) == ["llama@0", "llama@0+cot", "llama@0+cot+coconut"]


@pytest.mark.parametrize(
    ("base", "steps", "names"),
    [
        ("llama", ["cot", "dice"], ["llama@7", "llama@7+cot", "llama@7+cot+dice"]),
        ("hub", ["cot", "no_cot"], ["hub", "hub+cot@7", "hub+cot@7+no_cot"]),
        ("hub", ["drop-1", "cot"], ["hub", "hub+drop-1", "hub+drop-1+cot@7"]),
        ("hub", ["dice", "cot"], ["hub", "hub+dice@7", "hub+dice@7+cot"]),
        (
            "hub",
            ["lowest", "dice", "cot"],
            ["hub", "hub+lowest", "hub+lowest+dice@7", "hub+lowest+dice@7+cot"],
        ),
    ],
)
def test_the_seed_is_attached_where_randomness_enters(base, steps, names):
    tree = tree_of([{"base": base, "steps": steps}], seeds=[7])
    assert list(tree.nodes) == names
    assert tree.recipes[0].recipe == "+".join([base, *steps])
    assert tree.recipes[0].nodes == (names[-1],)
    for node in tree.nodes.values():
        assert node.seed == (7 if "@" in node.name else None)


def test_every_stage_of_the_step_where_the_seed_enters_bears_it():
    tree = tree_of([{"base": "hub", "steps": ["coconut", "drop-1"]}], seeds=[3])
    assert list(tree.nodes) == [
        "hub",
        "hub+coconut.0@3",
        "hub+coconut.1@3",
        "hub+coconut.2@3",
        "hub+coconut@3",
        "hub+coconut@3+drop-1",
    ]


def test_seeds_share_what_comes_before_randomness():
    tree = tree_of([{"base": "hub", "steps": ["drop-1", "cot"]}], seeds=[0, 1, 12])
    assert list(tree.nodes) == [
        "hub",
        "hub+drop-1",
        "hub+drop-1+cot@0",
        "hub+drop-1+cot@1",
        "hub+drop-1+cot@12",
    ]
    assert tree.recipes[0].nodes == ("hub+drop-1+cot@0", "hub+drop-1+cot@1", "hub+drop-1+cot@12")
    assert {without_seed(name) for name in tree.recipes[0].nodes} == {"hub+drop-1+cot"}


def test_the_seed_is_among_the_settings_of_what_depends_on_it_only():
    nodes = tree_of([["cot", "drop-1", "dice"]], seeds=[5]).nodes
    seeds = {name.rsplit("+", 1)[-1]: node.settings["seed"] for name, node in nodes.items()}
    assert seeds == {"llama@5": 5, "cot": 5, "drop-1": None, "dice": 5}


def test_a_product_equals_its_recipes_written_out():
    product = tree_of(
        [
            {
                "start": ["cot"],
                "prunings": [[], "drop-1", ["drop-1", "groups-1"]],
                "methods": ["no_cot", ["no_cot", "coconut"]],
            }
        ]
    )
    listed = tree_of(
        [
            ["cot", "no_cot"],
            ["cot", "no_cot", "coconut"],
            {"steps": ["cot", "drop-1", "no_cot"]},
            ["cot", "drop-1", "no_cot", "coconut"],
            ["cot", "drop-1", "groups-1", "no_cot"],
            {"base": "llama", "steps": ["cot", "drop-1", "groups-1", "no_cot", "coconut"]},
        ]
    )
    assert product == listed


def test_the_words_of_a_recipe():
    (end,) = tree_of([["cot", "drop-1", "no_cot", "groups-1"]]).recipes
    assert (end.base, end.pruning, end.method) == ("llama", "drop-1 + groups-1", "no_cot")
    assert end.order == "llama > cot > drop-1 > no_cot > groups-1"
    assert tree_of([["cot"]]).recipes[0].pruning == "dense"


def test_method_task_and_trained_of_a_node():
    nodes = tree_of(
        [["elsewhere", "drop-1", "groups-1", "elsewhere2"]],
        steps=CONFIG["steps"]
        | {"elsewhere2": {"kind": "coconut", "task": "others", "curriculum": False, "training": TRAINING}},
    ).nodes
    described = [(node.kind, node.task, node.method, node.trained) for node in nodes.values()]
    assert described == [
        ("base", "sums", None, "llama@0"),
        ("train", "others", "cot", "llama@0+elsewhere"),
        ("prune", "others", "cot", "llama@0+elsewhere"),
        ("prune", "others", "cot", "llama@0+elsewhere"),
        ("train", "others", "coconut", "llama@0+elsewhere+drop-1+groups-1+elsewhere2"),
    ]


def test_pruned_holds_the_pruned_models_that_can_answer():
    tree = tree_of([{"base": "hub", "steps": ["drop-1", "cot", "groups-1"]}])
    assert [node.name for node in tree.pruned()] == ["hub+drop-1+cot@0+groups-1"]
    assert [node.name for node in tree.path_to("hub+drop-1+cot@0")] == [
        "hub",
        "hub+drop-1",
        "hub+drop-1+cot@0",
    ]


def test_a_quantized_node_is_its_parent_in_fewer_bits():
    tree = tree_of(
        [["cot", "coconut", "drop-1", "int8"], {"base": "hub", "steps": ["few_shot", "int8"]}], seeds=[3]
    )
    parent, node = (tree.nodes[f"llama@3+cot+coconut+drop-1{end}"] for end in ("", "+int8"))
    assert (node.kind, node.parent, node.step, node.stage) == ("quantize", parent.name, "int8", None)
    assert node.settings == {"quantize": {"kind": "quantize", "weights": "int8"}}
    for name in ("seed", "task", "method", "trained", "latents", "has_recurrent_latents", "answers"):
        assert getattr(node, name) == getattr(parent, name)
    assert node.latents == 2
    assert tree.nodes["hub+few_shot+int8"].method == "few_shot"
    assert [pruned.name for pruned in tree.pruned()] == [parent.name], "it is no model right after surgery"


def test_a_quantization_stands_with_the_prunings_in_the_words_of_a_recipe():
    ends = tree_of([["cot", "int8"], ["cot", "drop-1", "no_cot", "int8"]]).recipes
    assert [(end.pruning, end.method) for end in ends] == [("int8", "cot"), ("drop-1 + int8", "no_cot")]
    assert ends[1].order == "llama > cot > drop-1 > no_cot > int8"


def test_a_quantized_model_is_no_teacher():
    taught = with_step("icot_kd", teacher="llama+cot+int8")
    with pytest.raises(CopraError, match=r"teacher of 'icot_kd': 'int8' quantizes, and .* is no teacher"):
        tree_of([["no_cot", "icot_kd"]], steps=taught)


def test_one_stage_more_leaves_the_settings_of_the_stages_before():
    short = tree_of([["cot", "coconut"]], steps=with_step("coconut", max_latent_stage=3)).nodes
    long = tree_of([["cot", "coconut"]], steps=with_step("coconut", max_latent_stage=4)).nodes
    for stage in range(4):
        name = f"llama@0+cot+coconut.{stage}"
        assert long[name] == short[name]
    assert "llama@0+cot+coconut.4" in long
    assert "llama@0+cot+coconut.4" not in short


def test_an_override_changes_the_settings_of_its_stage_only():
    before = tree_of([["cot", "coconut"]]).nodes
    after = tree_of([["cot", "coconut"]], steps=with_step("coconut", overrides={2: {"epochs": 1.5}})).nodes
    assert [name for name in before if before[name] != after[name]] == ["llama@0+cot+coconut.2"]
    training = after["llama@0+cot+coconut.2"].settings["training"]
    assert (training["epochs"], training["steps"]) == (1.5, None)


def test_a_change_of_one_step_leaves_the_settings_of_the_others():
    recipes = [["cot", "drop-1", "no_cot"], ["cot", "coconut"]]
    before = tree_of(recipes).nodes
    after = tree_of(recipes, steps=with_step("no_cot", training={**TRAINING, "learning_rate": 0.5})).nodes
    assert [name for name in before if before[name] != after[name]] == ["llama@0+cot+drop-1+no_cot"]
    after = tree_of(recipes, steps=with_step("drop-1", metric="angular")).nodes
    assert [name for name in before if before[name] != after[name]] == ["llama@0+cot+drop-1"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (["cto"], "recipes: llama+cto: 'cto' is not in steps (did you mean 'cot'?)"),
        (
            {"base": "lama", "steps": ["cot"]},
            "recipes: lama+cot: 'lama' is not in bases (did you mean 'llama'?)",
        ),
        (["cot", "cot"], "recipes: llama+cot+cot: comes back to step 'cot'"),
        (
            ["cot", "elsewhere"],
            "llama+cot+elsewhere: 'elsewhere' trains on task 'others' after a training on 'sums'",
        ),
        (
            ["drop-1", "cot"],
            "llama+drop-1+cot: 'drop-1' scores a base from scratch before any training",
        ),
        (
            {"base": "hub", "steps": ["by-accuracy", "cot"]},
            "hub+by-accuracy+cot: 'by-accuracy' scores by accuracy, but the model cannot answer yet",
        ),
        (
            {"base": "hub", "steps": ["few_shot", "on-latents"]},
            "'on-latents' scores on the model's own latents before any training",
        ),
        (["cot", "on-text"], "'on-text' scores on a text, and there is none: name it under importance.text"),
        (["lowest"], "recipes: llama+lowest: never trains"),
        (["int8"], "recipes: llama+int8: never trains"),
        (["cot", "int8", "no_cot"], "'no_cot' comes after 'int8', whose weights are final: put 'int8' last"),
        (["cot", "int8", "lowest"], "'lowest' comes after 'int8', whose weights are final: put 'int8' last"),
        (["cot", "int8", "few_shot"], "'few_shot' comes after 'int8', whose weights are final"),
        (
            {"base": "gpt2", "steps": ["cot", "int8"]},
            "gpt2+cot+int8: 'int8' quantizes linear layers, which GPT-2 does not have",
        ),
        (
            ["looped", "lowest"],
            "'lowest' prunes after looped, whose layers are run several times: prune before it",
        ),
        (
            ["cot", "looped", "few_shot"],
            "'few_shot' prompts after looped, which answers at once and with its loop: leave it out",
        ),
        ([], "recipes: llama: never trains"),
    ],
)
def test_a_recipe_that_cannot_be_is_named_with_the_step_at_problem(recipe, message):
    with pytest.raises(CopraError, match=re.escape(message)) as caught:
        tree_of([["no_cot"], recipe])
    assert "\n" not in str(caught.value)


def test_a_recipe_given_twice_is_named():
    with pytest.raises(CopraError, match=r"^recipes: llama\+cot: given twice .*recipe number 3\)$"):
        tree_of([["cot"], ["no_cot"], {"base": "llama", "steps": ["cot"]}])


def test_all_problems_are_told_at_once():
    with pytest.raises(CopraError) as caught:
        tree_of([["cto"], ["lowest"], ["cot", "cot"]])
    assert [line.split(": ")[1] for line in str(caught.value).split("\n")] == [
        "llama+cto",
        "llama+lowest",
        "llama+cot+cot",
    ]


def test_a_problem_of_many_recipes_is_one_line():
    with pytest.raises(CopraError) as caught:
        tree_of([["cot"], ["cto"], ["cot", "cto"], ["no_cot", "cto"], ["lowest"]])
    assert str(caught.value).split("\n") == [
        "recipes: 3 of them, the first is llama+cto: 'cto' is not in steps (did you mean 'cot'?)",
        "recipes: llama+lowest: never trains, so it has no way to answer; add a training step",
    ]


@pytest.mark.parametrize("last", [29, 30])
def test_names_of_models_that_are_too_long_for_a_file_are_one_line(last):
    names = ["x" * (length - 1) + letter for length, letter in zip((60, 60, 60, last), "abcd", strict=True)]
    steps = {name: {"kind": "cot", "training": TRAINING} for name in names}
    if last == 29:
        assert max(map(len, tree_of([names], steps=steps).nodes)) == 220
        return
    with pytest.raises(
        CopraError, match=r"^recipes: 1 models have names of more than 220 bytes.* has 221\."
    ) as caught:
        tree_of([names, names[:3]], steps=steps)
    assert "\n" not in str(caught.value)


def test_what_may_come_after_a_looped_training():
    recipes = [
        ["cot", "drop-1", "looped", "int8"],
        ["looped", "cot", "drop-1", "few_shot"],
        ["looped", "coconut"],
    ]
    tree = tree_of(recipes)
    stage = tree.nodes["llama@0+looped"].settings["stage"]
    assert stage["loop"] == {"layers": "all", "times": 3}
    assert "loop" not in tree.nodes["llama@0+looped+cot"].settings["stage"]


def test_what_may_come_before_a_first_training():
    assert tree_of([["lowest", "cot"], ["dice", "cot"], {"base": "hub", "steps": ["drop-1", "cot"]}]).recipes


def test_the_primary_recipe_is_compared_with_another():
    both = {"reference": "llama+cot", "primary": "llama+no_cot"}
    assert tree_of([["cot"], ["no_cot"]], **both).recipes
    with pytest.raises(CopraError, match=r"^primary: 'llama\+no_cott' .*did you mean 'llama\+no_cot'\?"):
        tree_of([["cot"], ["no_cot"]], **{**both, "primary": "llama+no_cott"})
    for reference in (None, "llama+no_cot"):
        with pytest.raises(CopraError, match=r"^primary: .* another recipe\. Set 'reference'"):
            tree_of([["cot"], ["no_cot"]], **{**both, "reference": reference})


def test_the_primary_comparison_may_be_a_contrast():
    """Which needs no reference."""
    contrasts = {"ours": {"plus": ["llama+cot"], "minus": ["llama+no_cot"]}}
    assert tree_of([["cot"], ["no_cot"]], contrasts=contrasts, primary="ours").recipes
    with pytest.raises(
        CopraError, match=r"^primary: 'our' is none of the recipes and contrasts .*mean 'ours'\?"
    ):
        tree_of([["cot"], ["no_cot"]], contrasts=contrasts, primary="our")


def test_the_reference_must_be_a_recipe():
    assert tree_of([["cot"], ["no_cot"]], reference="llama+no_cot").recipes
    with pytest.raises(CopraError, match=r"^reference: 'llama\+no_cott' .*did you mean 'llama\+no_cot'\?"):
        tree_of([["cot"], ["no_cot"]], reference="llama+no_cott")
