"""Few-shot prompts: which examples, in which form, and what a bad file is told."""

import json
import re
from pathlib import Path

import pytest

from copra.methods.few_shot import FewShot
from copra.tasks.gsm8k import Gsm8k
from copra.tasks.task import Row, read_worked_examples
from copra.tasks.word_sums import WordSums
from copra.utils.errors import CopraError
from helpers.manifests import reread


def few_shot(**settings) -> FewShot:
    return FewShot(kind="few_shot", **settings)


def examples(settings: FewShot, rows=()) -> list[str]:
    """The examples one by one."""
    text = settings.decoding(rows, 48).prompting.exemplars
    assert text.endswith(settings.separator)
    return text.removesuffix(settings.separator).split(settings.separator)


def written(row: Row) -> str:
    return f"Q: {row.question}\nA: {' '.join(row.steps)} The answer is {row.answer}."


@pytest.fixture
def file(tmp_path):
    """Writes lines, records or text, into a file; returns its path."""

    def write(*lines) -> str:
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        (tmp_path / "examples.jsonl").write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        return str(tmp_path / "examples.jsonl")

    return write


def test_one_drawn_example_by_hand():
    rows = [Row("2 and 3 and 1 ?", ("2 + 3 = 5", "5 + 1 = 6"), "6")]
    decoding = few_shot(num_fewshot=1).decoding(rows, 48)
    assert decoding.prompting.exemplars == ("Q: 2 and 3 and 1 ?\nA: 2 + 3 = 5 5 + 1 = 6 The answer is 6.\n\n")
    assert decoding.prompting.question == "Q: {question}\nA:"
    # Those of lm-evaluation-harness' task gsm8k_cot.
    assert decoding.prompting.stops == ("Q:", "</s>", "<|im_end|>")
    assert (decoding.prefix_ids, decoding.latents, decoding.suffix_ids, decoding.extra_modules) == (
        (),
        0,
        (),
        (),
    )
    assert not decoding.has_recurrent_latents


def test_the_form_is_as_asked():
    settings = few_shot(
        num_fewshot=1,
        question="{question} =>",
        solution=" <{answer}> {steps} <{answer}>",
        separator=" ;\n",
        stops=(";", "=>"),
        answer="strict",
    )
    prompting = settings.decoding([Row("a {answer} ?", ("b", "c"), "d")], 48).prompting
    assert prompting.exemplars == "a {answer} ? => <d> b c <d> ;\n"
    assert (prompting.question, prompting.stops, prompting.answer) == ("{question} =>", (";", "=>"), "strict")


def test_drawn_examples_are_different_rows_of_the_split(rows):
    drawn = examples(few_shot(num_fewshot=8), rows)
    assert len(set(drawn)) == 8
    assert set(drawn) <= {written(row) for row in rows}
    # Not the first ones, and in the order of the draw.
    places = [[written(row) for row in rows].index(example) for example in drawn]
    assert places != sorted(places)


def test_the_seed_draws_the_examples(rows):
    first, again, other = (examples(few_shot(num_fewshot=6, seed=seed), rows) for seed in (3, 3, 4))
    assert first == again
    assert set(first) != set(other)


def test_all_rows_may_be_examples_and_no_more(rows):
    assert sorted(examples(few_shot(num_fewshot=24), rows)) == sorted(map(written, rows))
    with pytest.raises(CopraError, match=r"^few_shot: 25 examples are asked for and there are 24\. Lower"):
        few_shot(num_fewshot=25).decoding(rows, 48)


def test_gsm8ks_own_examples_are_sentences_in_their_order(rows):
    """Eight, like those of Wei et al.; whatever steps the train split has."""
    settings = few_shot(num_fewshot=8)
    worked = settings.worked(Gsm8k)
    texts = settings.decoding(rows, 48, worked).prompting.exemplars.removesuffix("\n\n").split("\n\n")
    known = [json.loads(line) for line in worked.read_text().splitlines()]
    assert texts == [
        f"Q: {each['question']}\nA: {' '.join(each['steps'])} The answer is {each['answer']}."
        for each in known
    ]
    assert len(texts) == 8
    assert not any(mark in text for text in texts for mark in ("<<", ">>", "####"))
    assert settings.decoding(rows, 48, worked) == few_shot(num_fewshot=8, seed=5).decoding([], 48, worked)
    assert few_shot(num_fewshot=2).decoding([], 48, worked).prompting.exemplars == "\n\n".join(
        [*texts[:2], ""]
    )


def test_the_arithmetic_of_gsm8ks_own_examples_is_right():
    """Every equation in a sentence holds, and the last number is the answer."""
    for row in read_worked_examples(Gsm8k.worked_examples):
        found = [re.findall(r"([0-9+*/ -]+)= ([0-9]+)", step) for step in row.steps]
        equations = [pair for pairs in found for pair in pairs]
        assert equations
        for left, right in equations:
            assert eval(left) == int(right)
        assert row.answer in re.findall("[0-9]+", row.steps[-1])
        assert equations[-1][1] == row.answer


def test_other_tasks_and_other_wishes_have_no_examples_of_copras(file):
    assert few_shot().worked(WordSums) is None
    assert few_shot(examples="train").worked(Gsm8k) is None
    assert few_shot(file=file({"question": "1 ?", "solution": "1"})).worked(Gsm8k) is None


def test_examples_of_a_file_stand_in_its_order(file, rows):
    records = [{"question": f"{n} ?", "solution": f"  it is {n}. \n", "more": n} for n in range(5)]
    found = examples(few_shot(num_fewshot=3, file=file(*records)), rows)
    assert found == [f"Q: {n} ?\nA: it is {n}." for n in range(3)]


def test_a_files_path_may_have_variables(file, tmp_path, monkeypatch):
    path = file({"question": "1 ?", "solution": "1"})
    monkeypatch.setenv("PLACE", str(tmp_path))
    settings = few_shot(num_fewshot=1, file="${PLACE}/examples.jsonl")
    assert settings.path == Path(path)
    assert examples(settings) == ["Q: 1 ?\nA: 1"]
    assert few_shot().path is None
    monkeypatch.delenv("PLACE")
    with pytest.raises(CopraError, match=r"^file: .*variable PLACE, which is not set"):
        assert settings.path


def test_line_separators_within_text_and_a_byte_order_mark_are_no_matter(file):
    path = file(
        "\ufeff" + json.dumps({"question": "a ?", "solution": "b"}),
        {"question": "c\u2028\x85d ?", "solution": "é"},
        "",
    )
    assert examples(few_shot(num_fewshot=2, file=path)) == ["Q: a ?\nA: b", "Q: c\u2028\x85d ?\nA: é"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "text",
        "[]",
        "7",
        "null",
        '"question solution"',
        '{"question": "a ?"}',
        '{"solution": "b"}',
        '{"question": "a ?", "solution": "b"',
        '{"question": null, "solution": "b"}',
        '{"question": "a ?", "solution": 7}',
    ],
)
def test_a_bad_row_is_named_with_its_file(file, line):
    good = {"question": "a ?", "solution": "b"}
    path = file(good, good, line, good)
    with pytest.raises(CopraError, match=rf"^few_shot: {path}, row 3: not a JSON object with 'question' and"):
        few_shot(num_fewshot=1, file=path).decoding([], 48)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "examples.jsonl"
    with pytest.raises(CopraError, match=rf"^few_shot: {path} cannot be read \(No such.*Correct the path"):
        few_shot(file=str(path)).decoding([], 48)
    path.write_bytes(b"\xff\xff")
    with pytest.raises(CopraError, match=rf"^few_shot: {path} is not UTF-8 text"):
        few_shot(file=str(path)).decoding([], 48)


def test_a_file_with_too_few_rows_is_refused(file):
    for lines, count in (((), 0), (({"question": "a ?", "solution": "b"},), 1)):
        with pytest.raises(CopraError, match=f"8 examples are asked for and there are {count}"):
            few_shot(file=file(*lines)).decoding([], 48)


def test_the_way_of_asking_survives_its_json(rows):
    settings = few_shot(
        num_fewshot=2, stops=("Q:", "\n\n"), answer="harness-strict", max_new_tokens=256, examples="train"
    )
    assert FewShot.model_validate(settings.canonical()) == settings
    decoding = settings.decoding(rows, 48)
    assert reread(decoding) == decoding
    assert (decoding.longest_answer(64), decoding.answer_rule) == (256, "harness-strict")
    assert few_shot(num_fewshot=2).decoding(rows, 48).longest_answer(64) == 64
