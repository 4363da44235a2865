"""What results say of how they were made, in each format, and when that is not what the config says."""

import json
from argparse import Namespace

import pandas
import pytest
from matplotlib.figure import Figure

from copra.commands.common import made_by
from copra.experiment.provenance import disagreement, read_record
from copra.report.style import save
from copra.utils.files import MANIFEST, canonical_json, write_json, write_parquet

# Characters that XML writes otherwise.
SETTINGS = {"node": "llama@0+cot", "text": "a < b & \"c\" > 'd' é", "code": "0123", "rate": 1e-3}


@pytest.fixture
def model(tmp_path):
    """The manifest of a model that other results are made of."""
    write_json(tmp_path / MANIFEST, {"weights": "w"})
    return tmp_path / MANIFEST


def written(folder, suffix, *files, settings=SETTINGS):
    """A result in a format that says how it was made."""
    path = folder / f"result{suffix}"
    record = made_by(Namespace(settings=json.dumps(settings)), *files)
    if suffix == ".json":
        write_json(path, {"accuracy": 0.5, **record})
    elif suffix == ".parquet":
        write_parquet(path, pandas.DataFrame({"accuracy": [0.5]}), record)
    else:
        save(Figure(), path, path.with_suffix(".png"), record)
    return path


@pytest.mark.parametrize("suffix", [".json", ".parquet", ".svg"])
def test_each_format_keeps_its_record(tmp_path, model, suffix):
    path = written(tmp_path, suffix, model, model)
    record = read_record(path)
    assert record["settings"] == SETTINGS
    assert len(record["files"]) == 1
    assert str(tmp_path) not in json.dumps(record)


def test_results_without_a_record_and_damaged_ones_have_none(tmp_path):
    write_json(tmp_path / "plain.json", {"accuracy": 0.5})
    write_parquet(tmp_path / "plain.parquet", pandas.DataFrame({"accuracy": [0.5]}))
    save(Figure(), tmp_path / "plain.svg", tmp_path / "plain.png")
    for suffix in (".json", ".parquet", ".svg"):
        assert read_record(tmp_path / f"plain{suffix}") is None
        (tmp_path / f"cut{suffix}").write_bytes((tmp_path / f"plain{suffix}").read_bytes()[:9])
        assert read_record(tmp_path / f"cut{suffix}") is None
        assert read_record(tmp_path / f"gone{suffix}") is None
    assert read_record(tmp_path / "plain.png") is None


@pytest.mark.parametrize("suffix", [".json", ".parquet", ".svg"])
def test_a_result_disagrees_with_other_settings_and_other_files(tmp_path, model, suffix):
    def found(**changes):
        given = {key: value for key, value in {**SETTINGS, **changes}.items() if value is not None}
        return disagreement(canonical_json(given), [str(path)], [str(model), "weights"])

    path = written(tmp_path, suffix, model)
    assert found() is None
    assert '"rate":0.001' in found(rate=2e-3)
    assert '"code":"0123"' in found(code="4567")
    # code_fingerprint: false
    assert found(code=None) is None
    assert "code" not in found(code=None, rate=2e-3)
    write_json(model, {"weights": "others"})
    assert found() == "other input files of the same names"
    assert found(code=None) == "other input files of the same names"


def test_only_results_that_are_there_can_disagree(tmp_path, model):
    path = written(tmp_path, ".parquet", model)
    settings = canonical_json(SETTINGS)
    write_parquet(tmp_path / "predictions.parquet", pandas.DataFrame({"correct": [True]}))
    outputs = [str(tmp_path / name) for name in ("predictions.parquet", "gone.json")]
    assert disagreement(settings, outputs, []) is None
    assert disagreement(settings, [*outputs, str(path)], [str(model)]) is None
    assert disagreement(settings, [*outputs, str(path)], []) is not None


def test_a_manifest_without_a_record_was_made_nobody_knows_how(model):
    assert disagreement(canonical_json(SETTINGS), [str(model)], []) == "no record in its manifest"
