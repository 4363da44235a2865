"""Names that would be refused by the file system or by Snakemake, hours later."""

import random

import pytest
from snakemake.io import PeriodicityDetector

from copra.schema.names import MOST_BYTES, PERIODIC, name_problems


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["cot", "none"], "this name stands for nothing"),
        (["Null"], "this name stands for nothing"),
        (["data.json"], r"must not end like a file"),
        (["a.parquet"], r"must not end like a file"),
        (["cot", "layers", "CoT"], "differs from 'cot' by case alone"),
        (["x" + "ab" * 20], "it ends in 'ab' 20 times or more"),
    ],
)
def test_a_name_that_makes_no_file_or_wildcard_is_told_with_the_reason(names, problem):
    ((name, told),) = name_problems(names)
    assert name == names[-1]
    assert problem in told


def test_ordinary_names_have_no_problems():
    assert not list(name_problems(["cot", "cot-1", "nonesuch", "json", "v1.b", "a" * 19, "ab" * 19 + "c"]))


def test_a_name_repeats_itself_if_snakemake_says_so():
    detector, draw = PeriodicityDetector(), random.Random(0)
    found = []
    for _ in range(2000):
        parts = ["".join(draw.choices("ab", k=draw.randrange(1, 4))) for _ in range(2)]
        name = parts[0] + parts[1] * draw.randrange(15, 25)
        found.append(detector.is_periodic(name) is not None)
        assert (PERIODIC.search(name) is not None) == found[-1], name
    assert 500 < sum(found) < 1500


def test_the_longest_name_can_be_written_with_any_suffix(tmp_path):
    from copra.utils.files import replacing

    for suffix in (".parquet", ".json", ".svg"):
        path = tmp_path / f"{'n' * MOST_BYTES}{suffix}"
        for text in ("one", "two"):
            with replacing(path) as temporary:
                temporary.write_text(text)
        assert path.read_text() == "two"
    folder = tmp_path / ("m" * MOST_BYTES)
    for _ in range(2):
        with replacing(folder) as temporary:
            temporary.mkdir()
    assert folder.is_dir()
