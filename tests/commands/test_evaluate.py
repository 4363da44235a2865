"""Commands that answer questions, killed and run again, and by several processes, as undisturbed."""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from copra.commands import evaluate, swap_latents, sweep_latents
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.generation import compiled
from copra.generation import decode as module
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.tasks.prepare import prepare
from copra.tasks.task import Row, Task
from copra.utils.errors import CopraError
from copra.utils.files import read_parquet
from copra.utils.heartbeat import running
from helpers.manifests import provenance, with_manifest

# 8 questions: three batches of an evaluation, nine of a sweep, twelve of four sources of latents.
SETTINGS = {
    evaluate: {"node": "tiny@0+coconut", "task": "sums", "max_new_tokens": 6, "batch_size": 3},
    sweep_latents: {"node": "tiny@0+coconut", "latents": [0, 5], "max_new_tokens": 6, "batch_size": 3},
    swap_latents: {
        "node": "tiny@0+coconut",
        "latents_from": ["own", "other", "mean", "drop_last"],
        "max_new_tokens": 6,
        "batch_size": 3,
    },
}
BATCHES = {evaluate: 3, sweep_latents: 9, swap_latents: 12}


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data and two checkpoints that think in two latents."""
    for seed in (0, 1):
        made = word_base(initializer_range=0.3, seed=seed)
        markers = markers_of(made.tokenizer)
        decoding = GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,), "projected")
        torch.manual_seed(seed)
        save_checkpoint(
            tmp_path / f"model-{seed}",
            made.model,
            made.tokenizer,
            provenance("tiny@0+coconut", training_flops=77, decoding=decoding),
            extra_modules=make_extra_modules(made.model, {"projection": {}}),
        )
    return tmp_path


def words_of(
    place: Path,
    verb,
    output: str,
    model: str = "model-0",
    data: str = "data",
    trained_on_data=None,
    **changes,
):
    words = ["--settings", json.dumps({**SETTINGS[verb], **changes}), "--model", str(place / model)]
    words += ["--trained-on", str(place / trained_on_data)] if trained_on_data else []
    words += ["--data", str(place / data), "--state", str(place / "results" / "state")]
    return [*words, "--output", str(place / output / ("" if verb is evaluate else "latents.parquet"))]


def run(place: Path, verb, output: str = "output", **changes) -> dict[str, bytes]:
    """What the verb makes in this process."""
    parser = ArgumentParser()
    verb.arguments(parser)
    verb.run(parser.parse_args(words_of(place, verb, output, **changes)))
    return made(place / output)


def made(folder: Path) -> dict[str, bytes]:
    """The files of an evaluation, without their record of the settings."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "metrics.json" in found:
        metrics = json.loads(found["metrics.json"])
        del metrics["made_by"]
        found["metrics.json"] = json.dumps(metrics).encode()
    return found


def states(place: Path) -> list[Path]:
    return list((place / "results" / "state").glob("*"))


@pytest.fixture
def batches(monkeypatch):
    """Filled with the sizes of the batches that are really answered; the one after `batches.limit` of them
    never ends."""

    class Batches(list):
        limit = 1000

    seen, generate = Batches(), module.decode_greedily

    def count(session, *arguments):
        if len(seen) == seen.limit:
            raise KeyboardInterrupt
        seen.append(len(session.mask))
        return generate(session, *arguments)

    monkeypatch.setattr(module, "decode_greedily", count)
    return seen


def break_off(place: Path, verb, batches, after: int, **changes) -> None:
    batches.limit = len(batches) + after
    with pytest.raises(KeyboardInterrupt):
        run(place, verb, "broken", **changes)
    batches.limit = 1000
    batches.clear()


@pytest.mark.slow
@pytest.mark.parametrize("verb", BATCHES)
def test_a_broken_off_evaluation_goes_on_with_the_missing_batches(place, batches, verb):
    expected = run(place, verb)
    whole, total = list(batches), BATCHES[verb]
    assert len(whole) == total
    assert whole[:3] == [3, 3, 2]
    for after in range(1, total):
        batches.clear()
        break_off(place, verb, batches, after)
        assert not (place / "broken").exists()
        assert run(place, verb, "broken") == expected
        assert batches == whole[after:]
        assert states(place) == []
        shutil.rmtree(place / "broken")


def test_it_may_be_broken_off_after_each_batch(place, batches):
    expected = run(place, evaluate)
    for _ in range(2):
        break_off(place, evaluate, batches, 1)
    assert run(place, evaluate, "broken") == expected
    assert batches == [2]


def test_a_batch_whose_line_was_cut_short_is_answered_again(place, batches):
    expected = run(place, evaluate)
    break_off(place, evaluate, batches, 2)
    (state,) = states(place)
    lines = state / "answers.jsonl"
    lines.write_bytes(lines.read_bytes()[:-30])
    assert run(place, evaluate, "broken") == expected
    assert batches == [3, 2]


@pytest.mark.slow
def test_answers_of_other_settings_models_or_questions_are_not_taken(place, batches):
    shutil.copytree(place / "data", place / "others")
    for kind in ("parquet", "json"):
        shutil.copyfile(place / "others" / f"valid.{kind}", place / "others" / f"test.{kind}")
    changes = [
        {"max_new_tokens": 5},
        {"batch_size": 4},
        {"limit": 7},
        {"split": "valid"},
        {"code": "newer"},
        {"model": "model-1"},
        {"data": "others"},
    ]
    break_off(place, evaluate, batches, 2)
    for number, change in enumerate(changes):
        run(place, evaluate, f"output-{number}", **change)
        assert sum(batches) == change.get("limit", 8)
        assert len(states(place)) == 1
        batches.clear()
    run(place, evaluate)
    assert batches == [2]


def test_a_state_belongs_to_weights_parts_decoding_and_threads(place):
    from copra.evaluation.answer_cache import AnswerCache

    checkpoint = load_checkpoint(place / "model-0")

    def folder(checkpoint=checkpoint, **settings):
        settings = {"node": "a", **settings}
        return AnswerCache(place, checkpoint, settings, place / "data" / "test.parquet", 8).cache.folder

    def changed(**changes):
        return folder(with_manifest(checkpoint, **changes))

    found = [
        folder(),
        *(changed(files=checkpoint.files | {name: "others"}) for name in checkpoint.files),
        changed(files=checkpoint.files | {"added.jinja": "others"}),
        changed(decoding=replace(checkpoint.decoding, iterations=1)),
        folder(limit=3),
    ]
    checkpoint.model.double()
    found.append(folder())
    assert len(set(found)) == len(found)
    checkpoint.model.float()
    assert folder() == found[0]
    torch.set_num_threads(2)
    assert folder() not in found
    torch.set_num_threads(1)


def test_it_says_how_far_it_is(place, batches, monkeypatch):
    monkeypatch.setattr("copra.utils.heartbeat.SECONDS_BETWEEN_TICKS", 0)
    for verb, after, step, total in (
        (evaluate, 2, 6, 8),
        (sweep_latents, 4, 11, 24),
        (swap_latents, 4, 11, 32),
    ):
        break_off(place, verb, batches, after)
        (job,) = running(place / "results")
        assert (job.node, job.unit, job.step, job.total) == ("tiny@0+coconut", "questions", step, total)
        run(place, verb)
    assert running(place / "results") == []


def test_what_cannot_be_answered_leaves_no_state(place):
    with pytest.raises(CopraError, match="which leaves"):
        run(place, evaluate, max_new_tokens=64)
    assert states(place) == []


def ask_others(place, *rows, trained_on="sums", output="output", **changes):
    """Evaluate on the test set of another task, which has these rows."""

    class Others(Task):
        kind: str = "others"

        @property
        def splits(self):
            return ("test",)

        def rows(self):
            yield from (("test", row) for row in rows)

    prepare(Others(), place / "others")
    changes = {"task": "others", "trained_on": trained_on, **changes}
    return run(place, evaluate, output, data="others", trained_on_data="data", **changes)


def test_questions_that_a_model_was_trained_on_are_left_out_and_counted(place, rows):
    """Training and validation questions, whatever their case; those of the test set of its own task stay."""
    new = Row("5 and 5 and 5 ?", (), "15")
    disguised = replace(rows[1], question="1 AND 3, and 1")
    found = json.loads(ask_others(place, rows[0], new, disguised, rows[2])["metrics.json"])
    table = read_parquet(place / "output" / "predictions.parquet")
    assert list(table["question"]) == [new.question, rows[2].question]
    assert (found["task"], found["seen_in_training"], found["n"]) == ("others", 2, 2)
    found = json.loads(ask_others(place, rows[0], new, rows[2], output="one", limit=1)["metrics.json"])
    assert (found["seen_in_training"], found["n"]) == (1, 1)
    own = json.loads(run(place, evaluate, "own")["metrics.json"])
    assert (own["task"], own["seen_in_training"], own["n"]) == ("sums", 0, 8)
    with pytest.raises(
        CopraError, match=r"task 'sums' trains on all questions of its test split\. Leave 'others'"
    ):
        ask_others(place, rows[0], rows[1], output="none")


def test_words_of_another_task_that_the_tokenizer_lacks_are_named(place):
    with pytest.raises(
        CopraError, match=r"^task others: .* lacks 1 of the words .*, such as 'zebras' in '2 and 5"
    ):
        ask_others(place, Row("2 and 5 zebras ?", (), "7"))
    assert states(place) == []


def test_an_evaluation_on_another_task_has_a_state_and_a_name_of_its_own(place, batches, monkeypatch):
    monkeypatch.setattr("copra.utils.heartbeat.SECONDS_BETWEEN_TICKS", 0)
    questions = [Row(f"5 and 5 and 5 and 5 and {n} ?", (), "5") for n in range(1, 6)]
    batches.limit = 1
    with pytest.raises(KeyboardInterrupt):
        ask_others(place, *questions)
    (job,) = running(place / "results")
    assert (job.node, job.step, job.total) == ("others/tiny@0+coconut", 3, 5)


def run_by_two(place, command, name):
    """Run a command by two processes, into the folder "together"."""
    words = [sys.executable, "-m", "copra.cli", name, "--processes", "2", "--threads", "2"]
    done = subprocess.run(
        [*words, *words_of(place, command, "together")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
def test_two_processes_answer_as_one(place, batches):
    """They go on, too, where one was: of three batches the first is done, and each has one of the others."""
    expected = run(place, evaluate)
    batches.clear()
    break_off(place, evaluate, batches, 1)
    run_by_two(place, evaluate, "evaluate")
    assert made(place / "together") == expected
    assert states(place) == []
    # Otherwise answers in another order would pass.
    assert read_parquet(place / "together" / "predictions.parquet")["generated"].nunique() > 4


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
def test_two_processes_swap_latents_as_one(place):
    """Each reads the latents of its own batches, and answers with those of all."""
    expected = run(place, swap_latents)
    run_by_two(place, swap_latents, "swap-latents")
    assert made(place / "together") == expected
    assert states(place) == []


@pytest.mark.slow
def test_compiled_answers_equal_plain_ones(place, monkeypatch):
    counter, made = CompileCounter(), compiled.Compiled.__init__
    monkeypatch.setattr(compiled.Compiled, "__init__", lambda *given: made(*given, backend=counter))
    plain = run(place, evaluate, "plain")
    assert run(place, evaluate, "compiled", compile=True) == plain
    assert counter.frame_count == 1
    torch.compiler.reset()


@pytest.fixture
def types(monkeypatch):
    """The types of what every pass of a model gives, where bfloat16 is there to be used."""
    from copra.generation.session import DecodingSession

    monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda: True)
    seen, pass_of = set(), DecodingSession._read

    def watched(self, *arguments):
        states = pass_of(self, *arguments)
        seen.add(states.dtype)
        return states

    monkeypatch.setattr(DecodingSession, "_read", watched)
    return seen


def test_answers_in_bfloat16_are_computed_and_recorded_so(place, types):
    """Latents through a projection too, whose weights and input must be of one type."""
    whole = run(place, evaluate, precision="float32")
    assert types == {torch.float32}
    types.clear()
    short = run(place, evaluate, "short", precision="bfloat16")
    assert types == {torch.bfloat16}
    for files, precision, bytes_each in ((whole, "float32", 4), (short, "bfloat16", 2)):
        metrics = json.loads(files["metrics.json"])
        assert metrics["precision"] == precision
        assert metrics["kv_cache_bytes_per_token"] == 2 * 2 * 2 * 8 * bytes_each
    run(place, sweep_latents, "swept", precision="bfloat16")
    assert set(read_parquet(place / "swept" / "latents.parquet")["precision"]) == {"bfloat16"}


def test_positions_are_not_rounded_to_bfloat16(place, types):
    """Rotary frequencies are a buffer in float32 whatever the weights are."""
    whole, short = (load_checkpoint(place / "model-0", each).model for each in ("float32", "bfloat16"))
    expected = dict(whole.named_buffers())
    assert expected
    for name, found in short.named_buffers():
        assert found.dtype == torch.float32
        assert torch.equal(found, expected[name])


def test_answers_are_kept_for_one_precision(place, batches, types):
    run(place, evaluate, "float32")
    batches.clear()
    break_off(place, evaluate, batches, 2, precision="bfloat16")
    run(place, evaluate, "again")
    assert batches == [3, 3, 2]


def test_without_bfloat16_answers_are_those_of_float32(place, monkeypatch):
    monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda: False)
    assert run(place, evaluate, "asked", precision="bfloat16") == run(place, evaluate)
