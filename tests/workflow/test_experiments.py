"""Experiments beside each other in one folder: each has its own results."""

from dataclasses import replace

from copra.utils.files import read_json

COT = "llama@0+cot"


def test_two_presets_one_after_the_other_leave_both_results_whole(unstarted, tmp_path):
    place = unstarted.empty(tmp_path / "run")
    # One name of a model means two models here, with nothing else to tell them apart.
    presets = {
        name: place.with_config(
            place.folder / f"{name}.yaml",
            recipes=[["cot"]],
            reference=None,
            steps__cot__training__steps=steps,
            importance={},
        )
        for name, steps in (("one", 6), ("two", 7))
    }
    presets["named"] = replace(presets["two"], options=(*presets["two"].options, "--config", "name=other"))
    made = {}
    for name in ("one", "two"):
        printed = presets[name].snakemake()
        assert f"Tables are in results/{name}/tables, figures in results/{name}/figures" in printed
        files = (path for path in (place.folder / "results" / name).rglob("*") if path.is_file())
        made[name] = {path: path.read_bytes() for path in files}
    for name, steps in (("one", 6), ("two", 7)):
        folder = place.folder / "results" / name
        assert read_json(folder / "models" / COT / "copra.json")["lineage"][-1]["record"]["steps"] == steps
        assert (folder / "tables" / "accuracy_vs_flops.md").is_file()
        assert {path: path.read_bytes() for path in made[name]} == made[name]
        assert presets[name].would_run() == set()
    assert {path.name for path in (place.folder / "results").iterdir()} == {"one", "two"}
    assert "results/other/models" in presets["named"].snakemake("-n")
