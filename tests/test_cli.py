"""The command line: help, exit statuses, and messages without tracebacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import copra
from copra.cli import COMMANDS, main
from helpers.tiny import YAML

SETTINGS = {
    "data": {"task": {"kind": "word_sums"}},
    "score": {"unit": "layers", "rows": 4, "batch_size": 4, "objective": "cot"},
    "select": {"prune": {"kind": "prune", "unit": "layers", "metric": "deepest", "budget": {"count": 1}}},
    "evaluate": {"node": "llama", "task": "sums"},
}


def failure(capsys, *arguments):
    """The message of a verb that must fail with status 1."""
    assert main(list(map(str, arguments))) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith(f"copra {arguments[0]}: ")
    return captured.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(capsys, arguments):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: copra COMMAND")
    width = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        assert f"  {name:{width}} {command.help}" in text


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"copra {copra.__version__}\n"


def test_an_unknown_command_exits_with_2_and_the_list(capsys):
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unknown command 'trian' (did you mean 'train'?)" in captured.err
    assert "  train " in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: copra {command}" in capsys.readouterr().out


def test_the_installed_command_ends_with_the_status():
    command = [sys.executable, "-m", "copra.cli"]
    assert subprocess.run([*command, "trian"], capture_output=True).returncode == 2
    done = subprocess.run([*command, "check", "nowhere.yaml"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "copra check: nowhere.yaml: cannot be read (No such file or directory).\n"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{", "--settings: Expecting property name"),
        ("[]", "--settings: "),
        ("{}", "--task: no task is given"),
        ('{"splt": "train"}', "splt"),
        ('{"task": {"kind": "word_sum"}}', "'word_sum'"),
        ('{"task": {"kind": "word_sums", "trian": 3}}', "task.word_sums.trian"),
        ("@nowhere.json", "--settings: [Errno 2] No such file or directory: 'nowhere.json'"),
    ],
)
def test_wrong_settings_are_a_message(capsys, tmp_path, settings, words):
    message = failure(capsys, "data", "--settings", settings, "--output", tmp_path / "out")
    assert words in message
    assert not (tmp_path / "out").exists()


def test_settings_may_stand_in_a_file(capsys, tmp_path):
    (tmp_path / "settings.json").write_text(
        json.dumps({"task": {"kind": "word_sums", "test": 3, "train": 5}})
    )
    assert main(["data", "--settings", f"@{tmp_path}/settings.json", "--output", str(tmp_path / "out")]) == 0
    names = {f"{split}.{end}" for split in ("train", "valid", "test") for end in ("parquet", "json")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(
    ("verb", "options", "missing"),
    [
        ("select", ["--parent", "nowhere"], "nowhere/copra.json"),
        ("evaluate", ["--model", "nowhere", "--data", "data", "--state", "state"], "nowhere/copra.json"),
        ("export", ["--table", "none.parquet", "--csv", "a", "--md", "b", "--tex", "c"], "none.parquet"),
    ],
)
def test_a_missing_input_is_named(capsys, tmp_path, monkeypatch, verb, options, missing):
    monkeypatch.chdir(tmp_path)
    output = [] if verb == "export" else ["--output", "out"]
    message = failure(capsys, verb, "--settings", json.dumps(SETTINGS.get(verb, {})), *options, *output)
    assert f"{missing}: no such file. Run the rule that makes it, or snakemake." in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_check_lists_the_recipes_and_the_lengths_of_their_trainings(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text(YAML)
    assert main(["check", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/c.yaml: 1 recipes, 2 models",
        "  llama+cot",
        "  cot: 8 optimizer steps, 0.0512 epochs of 20,000 rows in batches of 128",
    ]


def test_check_notes_what_settings_bring(capsys, tmp_path):
    short = "short: {kind: coconut, pad_latent_to_max: false, training: {steps: 8}}"
    changed = YAML.replace("{cot: {", f"{{{short}, cot: {{").replace("[[cot]]", "[[cot, short]]")
    (tmp_path / "c.yaml").write_text(changed)
    assert main(["check", str(tmp_path / "c.yaml")]) == 0
    assert "  note: steps.short: pad_latent_to_max: false trains" in capsys.readouterr().out


def test_several_configs_are_checked_as_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(YAML)
    Path("more.yaml").write_text("recipes: [[cot], [cot, last]]\nsteps: {last: {kind: few_shot}}\n")
    assert main(["check", "c.yaml", "more.yaml"]) == 0
    assert "c.yaml, more.yaml: 2 recipes" in capsys.readouterr().out
    Path("more.yaml").write_text("seeds: [-1]")
    assert "c.yaml, more.yaml: seeds.0: should be" in failure(capsys, "check", "c.yaml", "more.yaml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps: 8", "stps: 8", ": steps.cot.training.stps: unknown key (did you mean 'steps'?)"),
        ("[[cot]]", "[[cot], [cto]]", ": recipes: llama+cto: 'cto' is not in steps (did you mean 'cot'?)"),
        ("base: llama", "base: llama\ntask: x", ", line 4: key 'task' is given twice (first on line 1)"),
    ],
)
def test_check_names_the_file_and_the_problem(capsys, tmp_path, old, new, words):
    (tmp_path / "c.yaml").write_text(YAML.replace(old, new))
    assert f"{tmp_path}/c.yaml{words}" in failure(capsys, "check", tmp_path / "c.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], ""),
        (["check", "c.yaml"], " transformers"),  # which counts the tokens of rows
        (["jobs", "c.yaml"], ""),
        (["schema"], ""),
        (["table", "--help"], " pandas pyarrow"),
        (["status"], ""),
    ],
)
def test_what_people_call_often_imports_nothing_heavy(tmp_path, arguments, needed):
    (tmp_path / "c.yaml").write_text(YAML)
    heavy = {"torch", "transformers", "datasets", "pandas", "pyarrow", "scipy", "matplotlib"}
    code = (
        "import contextlib, sys; from copra.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        f"print('heavy:', *sorted(set(sys.modules) & {heavy}))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"heavy:{needed}"
    assert len(done.stdout.splitlines()) > 1


@pytest.mark.slow
def test_only_commands_that_need_torch_import_it():
    """Those that compute, and those that read a checkpoint."""
    reading = ("convert", "executorch", "gguf", "prompt", "publish")
    light = [name for name, command in COMMANDS.items() if not command.computes and name not in reading]
    modules = ", ".join(f"copra.commands.{name}" for name in light)
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


@pytest.mark.slow
def test_schema_prints_the_json_schema(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"task", "bases", "steps", "recipes"} <= set(schema["properties"])
