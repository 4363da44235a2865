"""What counts as there: by the records of results that are written by hand here."""

import pytest

from copra.plan.jobs import jobs_of
from copra.plan.made import made_jobs
from copra.tasks.prepare import prepare
from copra.tasks.task import SPLITS
from copra.utils.files import write_json

COT = "llama@0+cot"
PRUNED = f"{COT}+layers-1"
STAGES = [f"train/{PRUNED}+{stage}" for stage in ("coconut.0", "coconut.1", "coconut")]


@pytest.fixture
def results(tmp_path, make_workflow):
    """The results of a finished run of the little experiment, as far as their records go."""
    workflow = make_workflow()
    prepare(workflow.experiment.tasks["sums"], tmp_path / "data" / "sums")
    for node in workflow.tree.nodes.values():
        step = {**node.settings, "method": node.method, "parent": f"weights of {node.parent}"}
        teacher = node.teacher and {"node": node.teacher}
        manifest = {**node.settings, "lineage": [{**step, "teacher": teacher}] if node.parent else []}
        manifest["weights"] = {"sha256": f"weights of {node.name}"}
        write_json(tmp_path / "models" / node.name / "copra.json", manifest)
    plan = {"units": ["layers"], "metric": "cosine", "scope": "uniform", "budget": {"count": 1}}
    plan |= {"normalize": False, "warning": None}
    write_json(tmp_path / "plans" / f"{PRUNED}.json", plan)
    for job in jobs_of(workflow).values():
        output = job.output(tmp_path)
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text('{"split": "test"}')
    return tmp_path


def to_run(workflow, results):
    jobs = jobs_of(workflow)
    pages = ("table", "export", "figure")
    return {key for key in set(jobs) - made_jobs(jobs, workflow, results) if not key.startswith(pages)}


def test_nothing_is_to_run_after_a_run(make_workflow, results):
    assert to_run(make_workflow(), results) == set()


def test_all_is_to_run_before_one(make_workflow, tmp_path):
    workflow = make_workflow()
    assert made_jobs(jobs_of(workflow), workflow, tmp_path / "nothing") == set()


AFTER_PRUNING = {f"prune/{PRUNED}", *STAGES, f"evaluate/{PRUNED}", f"evaluate/{PRUNED}+coconut"}
CHANGES = {
    "a last step": (
        {"steps__no-cot__training": {"steps": 9, "batch_size": 4, "num_validations": 1}},
        {f"train/{COT}+no-cot", f"evaluate/{COT}+no-cot"},
    ),
    "a default written out": (
        {
            "steps__no-cot__training": {
                "steps": 10,
                "batch_size": 4,
                "num_validations": 1,
                "max_grad_norm": 1.0,
            }
        },
        set(),
    ),
    "the budget": (
        {"steps__layers-1__budget": {"fraction": 0.5}},
        {f"choose/{PRUNED}", *AFTER_PRUNING},
    ),
    "a late stage": (
        {"steps__coconut__overrides": {1: {"steps": 3}}},
        {STAGES[1], STAGES[2], f"evaluate/{PRUNED}+coconut"},
    ),
    "the examples": (
        {"steps__ask__num_fewshot": 3},
        {f"prompt/{COT}+ask", f"evaluate/{COT}+ask"},
    ),
    "another split": (
        {"evaluation__split": "valid"},
        {f"evaluate/{node}" for node in (COT, f"{COT}+no-cot", PRUNED, f"{PRUNED}+coconut", f"{COT}+ask")},
    ),
    "a recipe more": (
        {"recipes": [["cot", "no-cot"], ["cot", "layers-1", "coconut"], ["cot", "ask"], ["no-cot"]]},
        {"train/llama@0+no-cot", "evaluate/llama@0+no-cot"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_by_the_records(make_workflow, results, change):
    values, expected = CHANGES[change]
    assert to_run(make_workflow(**values), results) == expected


@pytest.mark.parametrize(
    "values",
    [{"tasks__sums__train": 299}, {"bases__llama__from_scratch__intermediate_size": 48}, {"seeds": [1]}],
)
def test_what_all_else_follows_from(make_workflow, results, values):
    workflow = make_workflow(**values)
    assert made_jobs(jobs_of(workflow), workflow, results) <= {f"data/sums/{split}" for split in SPLITS}


def test_a_changed_test_set_asks_nothing_of_trainings(make_workflow, results):
    answers = [
        f"evaluate/{node}" for node in (COT, f"{COT}+no-cot", PRUNED, f"{PRUNED}+coconut", f"{COT}+ask")
    ]
    assert to_run(make_workflow(tasks__sums__test=7), results) == {"data/sums/test", *answers}


def test_a_model_of_another_parent_is_made_again(make_workflow, results):
    """As after a training was repeated by hand."""
    write_json(
        results / "models" / "llama@0" / "copra.json",
        {**make_workflow().node("llama@0").settings, "weights": {"sha256": "others"}},
    )
    assert f"train/{COT}" in to_run(make_workflow(), results)


def test_a_result_that_is_cut_short_is_made_again(make_workflow, results):
    manifest = results / "models" / f"{COT}+no-cot" / "copra.json"
    manifest.write_text(manifest.read_text()[:40])
    assert f"train/{COT}+no-cot" in to_run(make_workflow(), results)
    data = results / "data" / "sums" / "train.json"
    data.write_bytes(data.read_bytes()[:-50])
    assert "data/sums/train" in to_run(make_workflow(), results)
