"""The jobs of an experiment, against a list by hand; tests/workflow/test_forecast.py asks Snakemake."""

from pathlib import Path

from copra.plan.jobs import jobs_of

COT = "llama@0+cot"
PRUNED = f"{COT}+layers-1"


def test_the_jobs_of_a_little_experiment(make_workflow):
    jobs = jobs_of(make_workflow())
    models = {
        "base/llama@0",
        f"train/{COT}",
        f"train/{COT}+no-cot",
        f"prune/{PRUNED}",
        f"train/{PRUNED}+coconut.0",
        f"train/{PRUNED}+coconut.1",
        f"train/{PRUNED}+coconut",
        f"prompt/{COT}+ask",
    }
    asked = {f"evaluate/{name}" for name in (COT, PRUNED, f"{COT}+no-cot", f"{PRUNED}+coconut", f"{COT}+ask")}
    pages = {
        f"{verb}/{table}"
        for verb in ("table", "export")
        for table in ("accuracy_vs_flops", "before_fine_tuning")
    }
    figures = {
        "figure/accuracy_vs_flops",
        "figure/training_curves",
        "figure/after_fine_tuning",
        f"figure/layer_distances/{COT}/cot",
        f"figure/head_importance/{COT}/cot",
    }
    before = {f"data/sums/{split}" for split in ("train", "valid", "test")}
    before |= {f"score/{COT}/cot/passes", f"choose/{PRUNED}"}
    assert set(jobs) == models | asked | pages | figures | before


def test_each_job_comes_after_those_that_it_needs(make_workflow):
    jobs = jobs_of(make_workflow(latency={}, evaluation__latents=[1], evaluation__lens=1))
    seen = set()
    for key, job in jobs.items():
        assert set(job.needs) <= seen, key
        seen.add(key)
    rows = ("data/sums/train", "data/sums/valid")
    assert jobs["base/llama@0"].needs == rows
    assert jobs[f"train/{PRUNED}+coconut.1"].needs == (*rows, f"train/{PRUNED}+coconut.0")
    assert jobs[f"choose/{PRUNED}"].needs == (f"train/{COT}", f"score/{COT}/cot/passes")
    assert set(jobs[f"prune/{PRUNED}"].needs) == {"data/sums/train", f"train/{COT}", f"choose/{PRUNED}"}
    assert f"evaluate/{COT}+ask" in jobs["table/accuracy_vs_flops"].needs
    assert "latency" in jobs["table/accuracy_vs_flops"].needs
    assert jobs[f"sweep/{PRUNED}+coconut"].needs == (f"train/{PRUNED}+coconut", "data/sums/test")


def test_files_of_jobs_are_those_of_the_rules(make_workflow):
    jobs, results = jobs_of(make_workflow(latency={})), Path("results")
    score = jobs[f"score/{COT}/cot/passes"]
    assert score.output(results) == results / f"scores/{COT}/cot/passes.json"
    assert score.log(results) == results / f"logs/score/{COT}/cot/passes.log"
    assert score.benchmark(results) == results / f"benchmarks/score/{COT}/cot/passes.tsv"
    assert jobs["latency"].log(results) == results / "logs/latency.log"
    assert jobs["latency"].output(results) == results / "latency.parquet"
    stage = jobs[f"train/{PRUNED}+coconut.0"]
    assert stage.output(results) == results / f"models/{PRUNED}+coconut.0/copra.json"
    assert stage.log(results) == results / f"logs/train/{PRUNED}+coconut.0.log"


def test_a_teacher_is_waited_for(make_workflow):
    heal = {"kind": "cot", "distil": {}, "training": {"steps": 2}}
    workflow = make_workflow(steps__heal=heal, recipes=[["cot", "layers-1", "heal"]])
    needs = jobs_of(workflow)[f"train/{PRUNED}+heal"].needs
    assert set(needs) == {"data/sums/train", "data/sums/valid", f"prune/{PRUNED}", f"train/{COT}"}
