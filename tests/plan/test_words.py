"""Words of other tasks that a tokenizer lacks, found before a run."""

from pathlib import Path

import pytest

from copra.plan.estimate import Estimate
from copra.plan.words import check_words as check_words_of
from copra.utils.errors import CopraError

LONGER = {"kind": "word_sums", "train": 1, "valid": 1, "test": 20, "min_steps": 6, "max_steps": 6}
TOLD = {"kind": "rows", "test": "told.csv"}


def check_words(workflow):
    check_words_of(Estimate(workflow, Path(workflow.folder), cached=set()))


@pytest.fixture
def asking(make_workflow, tmp_path):
    """Makes the little experiment, whose models are also asked rows of a file and longer sums."""

    def make(*rows, **changes):
        (tmp_path / "told.csv").write_text("\n".join(["question,answer", *rows]))
        tasks = {"tasks__longer": {**LONGER, "max_number": 20}, "tasks__told": TOLD}
        return make_workflow(**{**tasks, "evaluation__tasks": ["longer", "told"], **changes})

    return make


def test_words_of_the_task_that_trains_the_tokenizer_are_known(asking):
    check_words(asking("Ann has 7 apples. How many?,7"))


def test_of_drawn_rows_a_sample_is_enough(asking, monkeypatch):
    """To draw all takes minutes where few graphs have a path of the right length."""
    prepared = []
    monkeypatch.setattr("copra.plan.words.prepared", lambda task: prepared.append(task.kind) or {})
    check_words(asking(evaluation__tasks=["longer"], tasks__sums__train=10**9))
    assert prepared == []


def test_all_drawn_rows_count_before_a_word_is_said_to_lack(asking):
    """A sample of 512 rows lacks some of the numbers to 300 that 20,000 rows have."""
    changes = {"tasks__sums__max_number": 300, "tasks__longer__max_number": 300}
    check_words(asking(evaluation__tasks=["longer"], tasks__sums__train=20_000, **changes))
    with pytest.raises(CopraError, match=r"lacks [0-9]+ of the words"):
        check_words(asking(evaluation__tasks=["longer"], tasks__sums__train=100, **changes))


def test_a_word_that_is_lacking_is_named_with_its_task_and_base(asking):
    with pytest.raises(CopraError) as caught:
        check_words(asking("How many apples?,7", "How many zebras and pears?,7", "Why?,1"))
    assert str(caught.value) == (
        "bases.llama: task told: the tokenizer, trained on another task, lacks 4 of the words in its "
        "questions and answers, such as 'zebras' in 'How many zebras and pears?'. Give the base "
        "tokenizer: bpe, train on a task with these words, or leave 'told' out of evaluation.tasks."
    )


def test_answers_count_and_questions_beyond_the_limit_do_not(asking):
    rows = ("How many apples?,7", "How many?,1234567")
    with pytest.raises(CopraError, match=r"lacks 1 of the words .* such as '1234567' in 'How many"):
        check_words(asking(*rows))
    check_words(asking(*rows, evaluation__limit=1))


def test_a_tokenizer_of_bytes_lacks_nothing(asking):
    check_words(asking("How many zebras?,7", bases__llama__from_scratch__tokenizer="bpe"))


def test_rows_on_the_hub_are_not_known_yet(asking):
    check_words(asking("How many?,7", tasks__told={"kind": "rows", "hub_name": "some/set", "test": "test"}))


def test_rows_that_cannot_be_prepared_are_named_by_their_task(asking):
    with pytest.raises(
        CopraError, match=r"^tasks\.told: 1 row cannot be used:\n  .*told\.csv, row 1: the answer"
    ):
        check_words(asking("How many?,many"))
