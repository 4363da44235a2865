"""ProsQA, checked by a search in the facts that the question tells and in nothing else."""

import itertools
import json
import re
from collections import Counter, deque

import pytest
from pydantic import ValidationError

from copra.tasks.prosqa import CONCEPTS, PEOPLE, Prosqa
from copra.tasks.task import BadRow, Row
from copra.utils.errors import CopraError

SMALL = {"train": 60, "valid": 20, "test": 20}
FACT = re.compile(r"(?:Every ([a-z]+)|([A-Z][a-z]+)) is a ([a-z]+)\.")
EXAMPLE = {
    "question": "Every zumpus is a timpus. Tom is a zumpus. Sam is a worpus. Is Tom a timpus or worpus?",
    "steps": ["Tom is a zumpus.", "Every zumpus is a timpus."],
    "answer": "Tom is a timpus.",
    "edges": [[0, 1], [1, 2], [3, 4]],
}


def read(question: str) -> tuple[list[tuple[str, str]], str, str, str]:
    """The edges of a question, and the person and the two concepts that it asks for."""
    *facts, asked = re.findall(r"[^.?]+[.?]", question)
    edges = []
    for fact in facts:
        concept, person, above = FACT.fullmatch(fact.strip()).groups()
        edges.append((concept or person, above))
    return edges, *re.fullmatch(r"Is ([A-Z][a-z]+) a ([a-z]+) or ([a-z]+)\?", asked.strip()).groups()


def distances(edges: list[tuple[str, str]], start: str) -> dict[str, int]:
    found, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for below, above in edges:
            if below == node and above not in found:
                found[above] = found[node] + 1
                waiting.append(above)
    return found


def check_row(row: Row, task: Prosqa) -> None:
    edges, person, *options = read(row.question)
    assert len(set(edges)) == len(edges)
    names = {node for edge in edges for node in edge}
    people = names & set(PEOPLE)
    assert names - people <= set(CONCEPTS)
    assert people == names - {above for _, above in edges}, "people are what nothing is said to be"
    reached = distances(edges, person)
    [right] = [option for option in options if option in reached]
    assert row.answer == f"{person} is a {right}."
    path = [FACT.fullmatch(step) for step in row.steps]
    assert all(re.search(rf"(^|\. ){re.escape(step)}", row.question) for step in row.steps)
    assert [path[0][2], path[-1][3]] == [person, right]
    assert all(step[3] == following[1] for step, following in itertools.pairwise(path))
    assert len(path) == reached[right], "the path must be a shortest one"
    assert task.min_steps <= len(path) <= task.max_steps
    # Both answers are leaves, each below one of two people and not below the other.
    assert not set(options) & {below for below, _ in edges}
    [wrong] = set(options) - {right}
    others = [distances(edges, other) for other in people - {person}]
    assert any(
        right not in other and task.min_wrong_steps <= other.get(wrong, 0) <= len(path) for other in others
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nodes": 10, "min_steps": 1, "max_steps": 3},
        {"nodes": 8, "parents": 1.0, "min_steps": 2, "max_steps": 2},
        {"nodes": 40, "parents": 3.0, "min_steps": 4, "max_steps": 5},
        {"nodes": 14, "parents": 0.7, "min_steps": 3, "max_steps": 3, "seed": 5},
        {"nodes": 4, "min_steps": 1, "max_steps": 1},
        {"nodes": 10, "parents": 1.2, "min_steps": 2, "max_steps": 3, "min_wrong_steps": 2},
    ],
)
def test_exactly_one_answer_can_be_reached_and_the_steps_are_a_shortest_path(settings):
    task = Prosqa(**SMALL, **settings)
    for _, row in task.rows():
        check_row(row, task)


def test_pairs_say_the_same_as_sentences():
    """What is left of the sentences without the words that are always the same; a question's person last."""
    settings = {"nodes": 10, "min_steps": 1, "max_steps": 3}
    sentences = [row for _, row in Prosqa(**SMALL, **settings).rows()]
    pairs = [row for _, row in Prosqa(**SMALL, **settings, wording="pairs").rows()]
    always = re.compile(r"(Every|Is) | (is a|a|or)(?= )")
    for long, short in zip(sentences, pairs, strict=True):
        left = always.sub("", long.question)
        assert re.sub(r"(\w+) (\w+) (\w+)\?", r"\2 \3 \1?", left) == short.question
        assert tuple(always.sub("", step) for step in long.steps) == short.steps
        assert always.sub("", long.answer) == short.answer
    assert re.fullmatch(r"(\w+ \w+\. )+[a-z]+ [a-z]+ [A-Z]\w+\?", pairs[0].question)


@pytest.mark.slow
def test_default_graphs_are_like_the_published_ones():
    """The 300 published validation rows: 36.3 facts (deviation 5.6), 20.3 concepts, 2.5 people, 3.75 steps
    (3: 0.41, 4: 0.44, 5: 0.12, 6: 0.02); the answer asked for stands first in 144 questions."""
    rows = [row for split, row in Prosqa(train=1500, valid=1, test=1).rows() if split == "train"]
    read_rows = [read(row.question) for row in rows]
    words = [{word for edge in edges for word in edge} for edges, *_ in read_rows]
    count = len(rows)
    assert sum(len(edges) for edges, *_ in read_rows) / count == pytest.approx(36.3, abs=0.6)
    assert sum(len(found & set(CONCEPTS)) for found in words) / count == pytest.approx(20.3, abs=0.3)
    assert sum(len(found & set(PEOPLE)) for found in words) / count == pytest.approx(2.5, abs=0.15)
    shares = Counter(len(row.steps) for row in rows)
    for steps, share in {3: 0.41, 4: 0.44, 5: 0.12, 6: 0.02}.items():
        assert shares[steps] / count == pytest.approx(share, abs=0.05)
    first = sum(row.answer.endswith(f" {one}.") for row, (_, _, one, _) in zip(rows, read_rows, strict=True))
    assert first / count == pytest.approx(0.5, abs=0.05)


def test_facts_stand_in_no_telling_order():
    places = Counter()
    for _, row in Prosqa(train=300, valid=1, test=1).rows():
        facts = re.findall(r"[^.?]+\.", row.question)
        where = [[fact.strip() for fact in facts].index(step) / len(facts) for step in row.steps]
        places[where[0] < where[-1]] += 1
    assert places[True] / places.total() == pytest.approx(0.5, abs=0.1)


def test_splits_are_disjoint_and_rows_depend_on_the_seed_alone():
    rows = list(Prosqa(**SMALL).rows())
    assert [split for split, _ in rows] == ["test"] * 20 + ["valid"] * 20 + ["train"] * 60
    assert len({row.id for _, row in rows}) == len(rows)
    assert list(Prosqa(**SMALL).rows()) == rows
    assert list(Prosqa(**{**SMALL, "train": 70}).rows())[: len(rows)] == rows
    assert list(Prosqa(**SMALL, seed=1).rows()) != rows


def test_the_first_row_never_changes():
    """Rows are part of every published number: a change here changes the task."""
    [row] = [row for split, row in Prosqa(nodes=10, min_steps=2, **SMALL).rows() if split == "test"][:1]
    assert row == Row(
        "Every gorpus is a shumpus. Sally is a gorpus. Every quimpus is a numpus. Every gorpus is a boompus. "
        "Every quimpus is a storpus. Wren is a rompus. Sally is a boompus. Wren is a quimpus. "
        "Wren is a storpus. Is Wren a shumpus or numpus?",
        ("Wren is a quimpus.", "Every quimpus is a numpus."),
        "Wren is a numpus.",
    )


def files_of(tmp_path, train, suffix="json"):
    path = tmp_path / f"train.{suffix}"
    path.write_bytes(train if isinstance(train, bytes) else json.dumps(train).encode())
    return str(path)


def rows_of(path: str) -> list[Row | BadRow]:
    return [row for split, row in Prosqa(train=path, valid=1, test=1).rows() if split == "train"]


def test_published_rows_are_read_without_their_graph(tmp_path):
    assert rows_of(files_of(tmp_path, [EXAMPLE])) == [
        Row(EXAMPLE["question"], tuple(EXAMPLE["steps"]), "Tom is a timpus.")
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "not a JSON object with the keys question, steps and answer"),
        ({"steps": [], "answer": "a"}, "no key 'question'"),
        ({"question": "q?", "answer": "a"}, "no key 'steps'"),
        ({"question": "q?", "steps": []}, "no key 'answer'"),
        ({"question": 1, "steps": [], "answer": "a"}, "'question' is not a string"),
        ({"question": "q?", "steps": "s", "answer": "a"}, "'steps' is not a list of strings"),
        ({"question": "q?", "steps": ["s", 2], "answer": "a"}, "'steps' is not a list of strings"),
        ({"question": "q?", "steps": ["s", " "], "answer": "a"}, "empty text under 'steps'"),
        ({"question": "q?", "steps": ["s"], "answer": "\n"}, "empty text under 'answer'"),
    ],
)
def test_bad_rows_say_where_and_why(tmp_path, record, reason):
    path = files_of(tmp_path, [EXAMPLE, record, EXAMPLE])
    good, bad, after = rows_of(path)
    assert good == after
    assert bad == BadRow(path, 2, reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b'{"question": "q?"}', "not a JSON list of rows"), (b"[1,", "Expecting value"), (b"\xff", "codec")],
)
def test_a_file_that_is_no_list_is_an_error_that_names_it(tmp_path, content, reason):
    with pytest.raises(CopraError, match=rf"^train: .*train\.json is no file of the task prosqa: .*{reason}"):
        rows_of(files_of(tmp_path, content))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_steps": 7}, "min_steps 7 is above max_steps 6"),
        ({"nodes": 5}, "min_steps 3 and min_wrong_steps 1 need 6 nodes"),
        ({"nodes": 8, "min_wrong_steps": 4}, "min_steps 3 and min_wrong_steps 4 need 10 nodes"),
        ({"min_wrong_steps": 7}, "min_wrong_steps 7 is above max_steps 6"),
        ({"valid": "rows.json"}, "valid is read from a file; say of train and test too"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Prosqa(**wrong)


def test_graphs_that_are_not_found_are_an_error_that_says_so():
    with pytest.raises(CopraError, match="prosqa: no new question was found in 1000 attempts"):
        list(Prosqa(nodes=12, min_steps=9, max_steps=9).rows())


def test_a_small_vocabulary_of_concepts():
    task = Prosqa(nodes=8, parents=1.0, min_steps=2, max_steps=3, concepts=6, train=60, valid=5, test=5)
    words = {word for _, row in task.rows() for word in re.findall(r"\b[a-z]+us\b", row.question)}
    assert words == set(CONCEPTS[:6])
    with pytest.raises(ValidationError, match="concepts is 5"):
        Prosqa(nodes=8, concepts=5)
