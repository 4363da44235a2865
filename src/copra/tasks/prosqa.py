"""ProsQA: questions about a person's concept in a graph of facts (arXiv 2412.06769, appendix A.2).

    Every lempus is a rorpus. Tom is a lempus. Every rorpus is a gorpus. Sam is a yumpus. ...
    Is Tom a gorpus or yumpus?
    steps Tom is a lempus. | Every lempus is a rorpus. | Every rorpus is a gorpus.; answer Tom is a gorpus.

A graph grows from two people: each new node gets parents among the older nodes, with more weight on deeper
ones. Most new nodes may only descend from one of the two people, so that both families have about the same
size. The question is about the person with the deeper family. The right concept is the deepest leaf of that
person's family, the wrong one a leaf of the other family; neither has a path to the other person. The steps
are a shortest path.

The paper's authors published rows but no generator. The constants below are fitted to the 300 published
validation rows rather than taken from the paper: graphs of 28 nodes, without those that have no edge, and
fractions of 0.4, 0.4 and 0.2 of new nodes for the first family, the second family, and any parents.
"""

import itertools
import json
import math
import random
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from copra.tasks.answers import AnswerKind
from copra.tasks.draws import pick, shuffled
from copra.tasks.generated import GeneratedTask
from copra.tasks.task import Row

PEOPLE = tuple(
    "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split()  # noqa: SIM905
)
CONCEPTS = tuple(
    """
    bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus
    jompus kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus
    timpus tumpus vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus
    """.split()  # noqa: SIM905
)
WORDINGS = {
    "sentences": ("{} is a {}.", "Every {} is a {}.", "Is {} a {} or {}?"),
    "pairs": ("{} {}.", "{} {}.", "{1} {2} {0}?"),
}
"""Templates of a fact about a person, a fact about a concept, and the question. A question in pairs names the
person last, so that it cannot be confused with a fact."""
FAMILY_SHARE = 0.4
"""Fraction of new nodes that may only descend from the first person; the same for the second person."""
DEPTH_WEIGHT = 1.5
"""Weight of depth: a node of depth d becomes a parent with weight 1 + 1.5 d. The depth is 1 more than the
lowest depth of its parents, and 0 without parents."""


class Graph(NamedTuple):
    """A grown graph: nodes 0 and 1 are the two people of the question.

    `parents[node]` are its parents, all older; `families[node]` is 1 for node 0 and its descendants, 2
    for node 1 and its descendants, 3 for descendants of both, 0 for all others.
    """

    parents: list[list[int]]
    families: list[int]


class Prosqa(GeneratedTask):
    """Generated graphs of facts, or the published JSON lists of rows with question, steps and answer."""

    kind: Literal["prosqa"] = "prosqa"
    """Kind of task."""
    nodes: int = Field(28, ge=4, le=len(CONCEPTS) + 2)
    """Number of nodes of a generated graph, including nodes without an edge, which are left out of the
    question."""
    parents: float = Field(1.5, gt=0, le=10)
    """Mean number of parents of a new node (Poisson distribution)."""
    concepts: int = Field(len(CONCEPTS), ge=2, le=len(CONCEPTS))
    """Number of concept names to draw from. A small model learns fewer names sooner."""
    wording: Literal["sentences", "pairs"] = "sentences"
    """Wording of generated rows: the paper's sentences, or bare pairs (Tom lempus. lempus rorpus. gorpus
    yumpus Tom?). In pairs, the concept that follows from a name is the next token, which small models learn
    sooner."""
    min_steps: PositiveInt = 3
    """Minimum number of steps from the person to the answer."""
    max_steps: PositiveInt = 6
    """Maximum number of steps from the person to the answer."""
    min_wrong_steps: PositiveInt = 1
    """Minimum number of steps from the other person to the wrong answer. In small graphs, most wrong answers
    are one step from a person and right ones never are, which reveals the answer; 2 excludes such graphs."""

    @property
    def answers(self) -> AnswerKind:
        return "text"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")
        if self.concepts < self.nodes - 2:
            raise ValueError(
                f"nodes {self.nodes} may need {self.nodes - 2} concepts, but concepts is {self.concepts}"
            )
        if self.min_wrong_steps > self.max_steps:
            raise ValueError(
                f"min_wrong_steps {self.min_wrong_steps} is above max_steps {self.max_steps}; "
                "the wrong answer is never deeper than the right one"
            )
        needed = max(self.min_steps, self.min_wrong_steps) + self.min_wrong_steps + 2
        if needed > self.nodes:
            raise ValueError(
                f"min_steps {self.min_steps} and min_wrong_steps {self.min_wrong_steps} need {needed} nodes "
                f"(two people, and a node a step), but nodes is {self.nodes}"
            )
        return self

    @property
    def chance(self) -> float:
        """The accuracy of guessing: each question offers two concepts."""
        return 0.5

    def draw(self, rng: random.Random) -> Row | None:
        """Return the row of a random graph; None without a path of an allowed length or a wrong answer."""
        graph = grow(rng, self.nodes, self.parents)
        asked = _question(rng, graph, self.min_wrong_steps)
        if asked is None:
            return None
        path, wrong = asked
        return (
            _told(rng, graph, path, wrong, CONCEPTS[: self.concepts], self.wording)
            if self.min_steps < len(path) <= self.max_steps + 1
            else None
        )

    def records(self, content: bytes) -> list[Any]:
        """Return the entries of a JSON list."""
        records = json.loads(content)
        if not isinstance(records, list):
            raise ValueError("not a JSON list of rows")
        return records

    def read(self, record: Any) -> Row:
        """Return the row in one entry; its graph is ignored."""
        if not isinstance(record, dict):
            raise ValueError("not a JSON object with the keys question, steps and answer")
        for key in ("question", "steps", "answer"):
            if key not in record:
                raise ValueError(f"no key {key!r}")
            texts = record[key] if key == "steps" else [record[key]]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{key!r} is not a {'list of strings' if key == 'steps' else 'string'}")
            if not all(text.strip() for text in texts):
                raise ValueError(f"empty text under {key!r}")
        return Row(
            _one_line(record["question"]),
            tuple(_one_line(step) for step in record["steps"]),
            _one_line(record["answer"]),
        )


def grow(rng: random.Random, nodes: int, mean_parents: float) -> Graph:
    """Return a random graph of `nodes` nodes (Algorithm 1)."""
    graph = Graph([[], []], [1, 2])
    depths = [0, 0]
    for node in range(2, nodes):
        count = _poisson(rng, mean_parents)
        share = rng.random()
        if share < 2 * FAMILY_SHARE:
            family = 1 if share < FAMILY_SHARE else 2
            candidates = [older for older in range(node) if graph.families[older] == family]
        else:
            candidates = list(range(node))
        parents = _sample(rng, candidates, [1 + DEPTH_WEIGHT * depths[older] for older in candidates], count)
        graph.parents.append(parents)
        graph.families.append(0)
        for parent in parents:
            graph.families[node] |= graph.families[parent]
        depths.append(1 + min(depths[parent] for parent in parents) if parents else 0)
    return graph


def _question(rng: random.Random, graph: Graph, min_wrong_steps: int) -> tuple[list[int], int] | None:
    """Return the path from the person to the right answer, and the wrong answer; None if one is missing."""
    has_children = {parent for parents in graph.parents for parent in parents}
    leaves: dict[int, list[int]] = defaultdict(list)
    for node in range(2, len(graph.parents)):
        if node not in has_children:
            leaves[graph.families[node]].append(node)
    if not leaves[1] or not leaves[2]:
        return None
    paths = {person: _shortest_paths(graph, person) for person in (0, 1)}
    deepest = {
        person: max(shuffled(rng, leaves[1 + person]), key=lambda leaf: len(paths[person][leaf]))
        for person in (0, 1)
    }
    person = max(shuffled(rng, (0, 1)), key=lambda person: len(paths[person][deepest[person]]))
    wrong = [leaf for leaf in leaves[2 - person] if len(paths[1 - person][leaf]) > min_wrong_steps]
    return (paths[person][deepest[person]], pick(rng, wrong)) if wrong else None


def _shortest_paths(graph: Graph, person: int) -> dict[int, list[int]]:
    """Return a shortest path from `person` to each descendant; all parents of a node precede it."""
    paths = {person: [person]}
    for node, parents in enumerate(graph.parents):
        above = [paths[parent] for parent in parents if parent in paths]
        if above:
            paths[node] = [*min(above, key=len), node]
    return paths


def _told(
    rng: random.Random, graph: Graph, path: list[int], wrong: int, concepts: Sequence[str], wording: str
) -> Row | None:
    """Return the row for a graph, or None if there are too few names.

    Nodes without parents are people, and facts are in random order.
    """
    edges = [(parent, node) for node, parents in enumerate(graph.parents) for parent in parents]
    used = {node for edge in edges for node in edge}
    people = [node for node in sorted(used) if not graph.parents[node]]
    if len(people) > len(PEOPLE):
        return None
    words = dict(zip(people, shuffled(rng, PEOPLE), strict=False))
    words |= dict(zip(sorted(used - words.keys()), shuffled(rng, concepts), strict=False))

    of_person, of_concept, question = WORDINGS[wording]

    def fact(parent: int, node: int) -> str:
        return (of_person if parent in people else of_concept).format(words[parent], words[node])

    facts = shuffled(rng, [fact(*edge) for edge in edges])
    one, other = shuffled(rng, (path[-1], wrong))
    return Row(
        " ".join([*facts, question.format(words[path[0]], words[one], words[other])]),
        tuple(fact(*edge) for edge in itertools.pairwise(path)),
        fact(path[0], path[-1]),
    )


def _poisson(rng: random.Random, mean: float) -> int:
    """Return a Poisson draw: the number of uniform factors whose product still exceeds exp(-mean)."""
    count, product = 0, rng.random()
    while product > math.exp(-mean):
        count += 1
        product *= rng.random()
    return count


def _sample(rng: random.Random, items: Sequence[int], weights: Sequence[float], count: int) -> list[int]:
    """Return up to `count` different items, drawn by their weights without replacement."""
    items, weights = list(items), list(weights)
    chosen: list[int] = []
    while items and len(chosen) < count:
        sums = list(itertools.accumulate(weights))
        index = bisect(sums[:-1], rng.random() * sums[-1])
        chosen.append(items.pop(index))
        weights.pop(index)
    return chosen


def _one_line(text: str) -> str:
    return " ".join(text.split())
