"""Artifacts are complete or absent, whatever happens while they are written."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from copra.utils.errors import CopraError
from copra.utils.files import (
    canonical_json,
    digest,
    file_sha256,
    parquet_record,
    read_json,
    read_json_lines,
    read_parquet,
    read_sealed_json,
    read_yaml,
    replacing,
    write_json,
    write_parquet,
    write_sealed_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(folder, text):
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text(text)


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert names(path.parent) == ["file"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "folder"
    write_folder(path, "old")
    (path / "more").touch()
    write_folder(path, "new")
    assert names(path) == ["inner"]
    assert (path / "inner" / "file").read_text() == "new"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_artifact_alone(tmp_path, error):
    def interrupted(path, folder):
        with replacing(path) as temporary:
            temporary.mkdir() if folder else temporary.write_text("new")
            raise error

    (tmp_path / "file").write_text("old")
    write_folder(tmp_path / "folder", "old")
    for name in ("file", "folder"):
        with pytest.raises(type(error)):
            interrupted(tmp_path / name, name == "folder")
    assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_in_the_middle_leaves_the_old_artifact_and_the_next_write_cleans_up(tmp_path, kind):
    path = tmp_path / "artifact"
    code = f"""
        import os, signal
        from pathlib import Path
        from copra.utils.files import replacing
        with replacing(Path({str(path)!r})) as temporary:
            if {kind!r} == "folder":
                temporary.mkdir()
                temporary = temporary / "half"
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(names(tmp_path)) == 1
    if kind == "file":
        write_json(path, "old")
    else:
        write_folder(path, "old")
    assert names(tmp_path) == ["artifact"]
    before = path.read_bytes() if kind == "file" else (path / "inner" / "file").read_bytes()
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert (path.read_bytes() if kind == "file" else (path / "inner" / "file").read_bytes()) == before


def test_whoever_may_read_the_folder_may_read_its_artifacts(tmp_path):
    for mode in (0o755, 0o700, 0o775):
        tmp_path.chmod(mode)
        with replacing(tmp_path / "file") as temporary:
            temporary.touch(0o600)
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "file").touch(0o600)
        for file in (tmp_path / "file", tmp_path / "folder" / "file"):
            assert file.stat().st_mode & 0o777 == mode & 0o666


def test_leftovers_of_other_files_stay(tmp_path):
    other = tmp_path / ".other.json.tmp-1"
    other.touch()
    write_json(tmp_path / "file.json", 1)
    assert other.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_an_error_of_the_disk_names_the_place_and_leaves_nothing(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file.json"
    write_json(path, "old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CopraError) as caught:
        write_json(path, "new")
    assert str(caught.value).startswith(f"{path}: could not be written ({os.strerror(number)})")
    assert read_json(path) == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_file_that_outgrows_the_disk_in_the_middle_names_the_place(tmp_path):
    """A limit on the size of files stands for the full disk: the write itself fails, half-way."""
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")

    def write_weights(path):
        with replacing(path) as temporary:
            safetensors.save_file({"weight": numpy.zeros(50_000)}, temporary)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        for name, write in (
            ("a.json", lambda path: write_json(path, list(range(5000)))),
            ("a.parquet", lambda path: write_parquet(path, pandas.DataFrame({"x": range(50_000)}))),
            ("a.safetensors", write_weights),
        ):
            with pytest.raises(CopraError, match=f"{name}: could not be written"):
                write(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CopraError, match=r"file/x\.json: could not be written"):
        write_json(tmp_path / "file" / "x.json", 1)
    if Path("/proc/self").is_dir():
        with pytest.raises(CopraError, match=r"/proc/copra/x\.json: could not be written"):
            write_json(Path("/proc/copra/x.json"), 1)


def test_canonical_json_is_equal_for_equal_values():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) != digest({"a": 1, "b": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_the_sha256_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-4, the first example
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == known


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None], "a": "é"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["b", "a"]


def test_json_that_is_cut_or_missing_is_named(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2, 3]})
    (tmp_path / "x.json").write_bytes((tmp_path / "x.json").read_bytes()[:-5])
    with pytest.raises(CopraError, match=r"x\.json: not valid JSON .*Delete it"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CopraError, match=r"x\.json: not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(CopraError, match=r"y\.json: no such file"):
        read_json(tmp_path / "y.json")


def test_sealed_json_comes_back_as_it_was_and_refuses_edits(tmp_path):
    path = tmp_path / "x.json"
    value = {"b": [1, 2.5, None], "a": {2: "é", 10: 0.1}}
    write_sealed_json(path, value)
    assert read_sealed_json(path) == {"b": [1, 2.5, None], "a": {"2": "é", "10": 0.1}}
    # The digest by hand: of the value's JSON with sorted keys and no spaces.
    text = r'{"a":{"10":0.1,"2":"\u00e9"},"b":[1,2.5,null]}'
    assert json.loads(path.read_text())["digest"] == hashlib.sha256(text.encode()).hexdigest()
    # Layout does not matter, what it says does.
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_sealed_json(path)["b"] == [1, 2.5, None]
    for old, new in (("2.5", "2.6"), ('"b"', '"c"'), ("null", "0"), ('"digest"', '"digests"')):
        write_sealed_json(path, value)
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(CopraError, match=r"x\.json: not as copra wrote it .*Delete it"):
            read_sealed_json(path)
    write_json(path, [1])
    with pytest.raises(CopraError, match="not as copra wrote it"):
        read_sealed_json(path)


def test_json_lines_that_are_cut_or_missing_are_named_with_the_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n[2]\n')
    assert read_json_lines(path) == [{"a": 1}, [2]]
    path.write_text('{"a": 1}\n[2')
    with pytest.raises(CopraError, match=r"x\.jsonl, line 2: not valid JSON .*Delete it"):
        read_json_lines(path)
    with pytest.raises(CopraError, match=r"y\.jsonl: no such file"):
        read_json_lines(tmp_path / "y.jsonl")


def test_parquet_round_trip_with_its_record(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", None], "number": [1.5, 2.5]})
    write_parquet(tmp_path / "x.parquet", frame, {"rows": 2})
    pandas.testing.assert_frame_equal(read_parquet(tmp_path / "x.parquet"), frame)
    assert parquet_record(tmp_path / "x.parquet") == {"rows": 2}
    write_parquet(tmp_path / "y.parquet", frame)
    assert parquet_record(tmp_path / "y.parquet") == {}


@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_parquet_that_is_cut_or_missing_is_named(tmp_path, kept):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "x.parquet"
    write_parquet(path, pandas.DataFrame({"x": range(1000)}))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CopraError, match=r"x\.parquet: not a whole Parquet file .*Delete it"):
        read_parquet(path)
    with pytest.raises(CopraError, match=r"y\.parquet: no such file"):
        read_parquet(tmp_path / "y.parquet")


def yaml_file(tmp_path, text):
    (tmp_path / "c.yaml").write_text(textwrap.dedent(text))
    return tmp_path / "c.yaml"


def test_a_key_given_twice_is_refused_with_its_lines(tmp_path):
    path = yaml_file(
        tmp_path,
        """\
        task: a
        steps:
          cot: {kind: cot}
          drop: {kind: prune}
          cot: {kind: no_cot}
        """,
    )
    with pytest.raises(CopraError, match=r"c\.yaml, line 5: key 'cot' is given twice \(first on line 3\)"):
        read_yaml(path)
    with pytest.raises(CopraError, match=r"c\.yaml, line 1: key 'a' is given twice"):
        read_yaml(yaml_file(tmp_path, "x: {a: 1, a: 1}"))


def test_anchors_merges_and_equal_keys_of_different_mappings_are_legal(tmp_path):
    text = """\
        shared: &shared {steps: 8, rate: 1}
        cot: {<<: *shared, rate: 2}
        no_cot: *shared
    """
    assert read_yaml(yaml_file(tmp_path, text)) == {
        "shared": {"steps": 8, "rate": 1},
        "cot": {"steps": 8, "rate": 2},
        "no_cot": {"steps": 8, "rate": 1},
    }


@pytest.mark.parametrize(
    "text", ["a: [1", "a: 1\n b: 2", "path: {{x}}", "? [a, b]\n: 1\n? {c: d}\n: 1", "a:\n\t- b"]
)
def test_what_is_no_yaml_is_named(tmp_path, text):
    with pytest.raises(CopraError, match=r"c\.yaml: not valid YAML"):
        read_yaml(yaml_file(tmp_path, text))


def test_a_yaml_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CopraError, match=r"none\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(CopraError, match=r"cannot be read \(Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CopraError, match=r"c\.yaml: is UTF-16 text .*Give a YAML file as UTF-8 text\.$"):
        read_yaml(tmp_path / "c.yaml")
