import json

import pytest

from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError
from helpers.tiny import tiny_config

CONFIG = tiny_config(base="first")


def test_a_check_tells_of_every_base_whose_files_cannot_be_used(tmp_path):
    for name, config in (("first", {"quantization_config": {"quant_method": "awq"}}), ("second", None)):
        (tmp_path / name).mkdir()
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    bases = {name: {"path": str(tmp_path / name)} for name in ("first", "second", "later")}
    with pytest.raises(CopraError) as caught:
        Workflow({**CONFIG, "bases": bases}, "config.yaml")
    first, second = str(caught.value).split("\n")
    assert first.startswith(
        f"config.yaml: bases.first.path: {str(tmp_path / 'first')!r} has weights quantized by awq"
    )
    assert second.startswith(
        f"config.yaml: bases.second.path: {str(tmp_path / 'second')!r} has no config.json"
    )
    assert Workflow({**CONFIG, "bases": {"first": {"path": "some/model"}}}, "config.yaml").tree.nodes
