"""Which questions are the same in disguise, and which are only alike."""

import pytest

from copra.tasks.leaks import question_key

QUESTION = "Janet's 16 ducks cost $1,000.50 - well-known, aren't they? How many?"


@pytest.mark.parametrize(
    "disguise",
    [
        QUESTION.upper(),
        QUESTION.replace("'", "’"),
        QUESTION.replace("'", ""),
        QUESTION.replace(" ", "\u00a0"),
        QUESTION.replace(" ", " \n\t"),
        QUESTION.replace("u", "u\u200b"),
        "\ufeff" + QUESTION.replace("16", "1\u20606").replace("-known", "\u00ad-known"),
        QUESTION.replace("?", ""),
        QUESTION.replace("?", "？"),
        QUESTION.replace("$", ""),
        QUESTION.replace(",", "", 1),
        QUESTION.replace("well-known", "well—known"),
        QUESTION.replace("16", "１６").replace("ducks", "ｄｕｃｋｓ"),
        f'"{QUESTION}"',
    ],
)
def test_the_same_question(disguise):
    assert disguise != QUESTION
    assert question_key(disguise) == question_key(QUESTION)


def test_letters_are_compared_without_case_in_every_script():
    assert question_key("STRASSE, ﬁve ΣΟΦΟΣ") == question_key("straße five σοφος")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It costs $1.5", "It costs $15"),
        ("It costs 1.000", "It costs 1,000"),
        ("1/2 of 4", "12 of 4"),
        ("At 10:30", "At 1030"),
        ("8 - 2", "8 + 2"),
        ("8 - 2", "8 2"),
        ("It is -5", "It is 5"),
        ("2 * 3 4", "2 3 * 4"),
        ("1 23", "12 3"),
        ("1,23", "123"),
        ("Tom has 3", "Tim has 3"),
        ("a b", "ab"),
        ("3 > 2", "3 < 2"),
        ("3 × 2", "3 ÷ 2"),
        ("दिन", "दीन"),
        ("กิน", "กัน"),
        ("🍎🍎?", "🍎🍐?"),
        ("٣", "٤"),
        ("½ of 4", "¼ of 4"),
    ],
)
def test_another_question(one, other):
    assert question_key(one) != question_key(other)


@pytest.mark.parametrize("question", ["多少个苹果？", "कितने दिन?", "¿Cuántas manzanas?", "🍎 + 🍎"])
def test_every_script_has_punctuation_that_does_not_count(question):
    key = question_key(question)
    assert key
    assert question_key(f"« {question} »…") == key
    assert question_key(question.translate(dict.fromkeys(map(ord, "？?¿"), "!"))) == key


def test_minus_signs_are_one():
    assert question_key("8 − 2") == question_key("8 - 2")
