"""The passes of latents, and what each latent is made from, with states that say where they come from."""

import pytest
import torch

from copra.models.rollout import Span, rollout, spans


def test_passes_by_hand():
    assert list(spans(0, 3, 0, 5)) == [Span(0, 5)]
    assert list(spans(2, 5, 1, 9)) == [Span(2, 5), Span(5, 9, 1)]
    assert list(spans(0, 2, 3, 7)) == [Span(0, 2), Span(2, 3, 1), Span(3, 4, 1), Span(4, 7, 1)]
    assert list(spans(0, 2, 3, 7, 1)) == [Span(0, 5), Span(2, 7, 3)]
    assert list(spans(1, 2, 3, 5, 2)) == [Span(1, 5), Span(2, 5, 3), Span(2, 5, 3)]


def states_after(first: int, latents: int, stop: int, iterations: int) -> tuple[list, list[str]]:
    """Run a rollout whose states name their column and pass; return what the latents of each pass were made
    from, and the states in the end."""
    names: list[str] = []
    made_from = []

    def read(span: Span, before: list[torch.Tensor]) -> torch.Tensor:
        made_from.append([names[int(number)] for piece in before for number in piece[0, :, 0]])
        number = len(made_from)
        fresh = range(len(names), len(names) + span.stop - span.start)
        names.extend(f"{column} of pass {number}" for column in range(span.start, span.stop))
        return torch.tensor(fresh, dtype=torch.float)[None, :, None]

    pieces = rollout(spans(0, first, latents, stop, iterations), read)
    assert [start for start, _ in pieces] == sorted(start for start, _ in pieces)
    return made_from, [names[int(number)] for _, piece in pieces for number in piece[0, :, 0]]


def test_each_latent_is_made_from_the_state_before_it():
    made_from, left = states_after(first=2, latents=3, stop=7, iterations=0)
    assert made_from == [[], ["1 of pass 1"], ["2 of pass 2"], ["3 of pass 3"]]
    assert left == ["0 of pass 1", "1 of pass 1", "2 of pass 2", "3 of pass 3"] + [
        f"{column} of pass 4" for column in (4, 5, 6)
    ]


def test_each_iteration_makes_all_latents_from_the_pass_before():
    made_from, left = states_after(first=2, latents=2, stop=5, iterations=2)
    assert made_from == [[], ["1 of pass 1", "2 of pass 1"], ["1 of pass 1", "2 of pass 2"]]
    assert left == ["0 of pass 1", "1 of pass 1", "2 of pass 3", "3 of pass 3", "4 of pass 3"]


@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
@pytest.mark.parametrize("latents", [0, 1, 2, 3])
def test_the_states_in_the_end_are_those_of_all_columns(latents, iterations):
    _, left = states_after(2, latents, 6, min(iterations, latents))
    assert [int(name.split()[0]) for name in left] == list(range(6))
