from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from copra.data.sequences import Sample
from copra.training.batches import POOL, epoch_batches, micro_batches


def samples_of(lengths) -> list[Sample]:
    return [Sample(str(i), [1] * length, [1] * length, 0, 0) for i, length in enumerate(lengths)]


# Lengths in an order that sorting has to undo.
SAMPLES = samples_of([3 + 7 * i % 41 for i in range(103)])


def ids(batches) -> list[list[str]]:
    return [[sample.id for sample in batch] for batch in batches]


@pytest.mark.parametrize("batch_size", [1, 2, 10, 103, 500])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_sample_occurs_once(batch_size, epoch):
    batches = ids(epoch_batches(SAMPLES, batch_size, seed=3, epoch=epoch))
    assert Counter(i for batch in batches for i in batch) == Counter(sample.id for sample in SAMPLES)
    full, rest = divmod(103, batch_size)
    assert sorted(map(len, batches), reverse=True) == [batch_size] * full + [rest] * (rest > 0)


def test_several_pools_still_hold_every_sample_once():
    samples = samples_of([1 + i % 5 for i in range(2 * POOL * 3 + 4)])
    batches = ids(epoch_batches(samples, 3, 0, 0))
    assert Counter(i for batch in batches for i in batch) == Counter(sample.id for sample in samples)
    assert sorted(map(len, batches)) == [1] + [3] * (2 * POOL + 1)
    # The second pool is not the first one's longer samples: lengths are sorted within a pool only.
    assert len({len(batch[0].tokens) for batch in epoch_batches(samples, 3, 0, 0)[: POOL // 2]}) > 1


def test_batches_depend_on_seed_and_epoch_alone():
    first = ids(epoch_batches(SAMPLES, 4, 7, 2))
    assert ids(epoch_batches(list(SAMPLES), 4, 7, 2)) == first
    assert ids(epoch_batches(SAMPLES, 4, 8, 2)) != first
    assert ids(epoch_batches(SAMPLES, 4, 7, 3)) != first
    # Seed 1 in epoch 11 is not seed 11 in epoch 1.
    assert ids(epoch_batches(SAMPLES, 4, 1, 11)) != ids(epoch_batches(SAMPLES, 4, 11, 1))


def test_lengths_are_grouped_and_batches_shuffled():
    batches = epoch_batches(SAMPLES, 10, 0, 0)
    spans = [[len(sample.tokens) for sample in batch] for batch in batches]
    # In one pool a sorted list is cut: no two batches overlap in more than a length.
    ordered = sorted(spans)
    assert all(max(a) <= min(b) for a, b in pairwise(ordered))
    assert spans != ordered
    padded = sum(max(span) * len(span) for span in spans)
    assert padded < 1.1 * sum(map(sum, spans))


def test_equal_lengths_are_mixed_anew_each_epoch():
    samples = samples_of([5] * 40)
    neighbours = [{frozenset(batch) for batch in ids(epoch_batches(samples, 4, 0, e))} for e in (0, 1)]
    assert len(neighbours[0] & neighbours[1]) < 3


@pytest.mark.parametrize(
    ("size", "lengths"), [(None, [10]), (10, [10]), (20, [10]), (5, [5, 5]), (4, [4, 4, 2]), (1, [1] * 10)]
)
def test_micro_batches_are_the_batch_in_parts(size, lengths):
    parts = list(micro_batches(SAMPLES[:10], size))
    assert [len(part.samples) for part in parts] == lengths
    assert [sample for part in parts for sample in part.samples] == SAMPLES[:10]
    assert all(part.counts for part in parts)


def padded(samples, multiple: int = 1) -> int:
    """Padded tokens of one forward pass."""
    from copra.data.batch import collate

    batch = collate(samples, 0, multiple=multiple)
    widths = [batch.tokens.shape[1], batch.teacher.tokens.shape[1] if batch.teacher else 0]
    return len(samples) * max(widths)


TAUGHT = Sample("taught", [1] * 9, [1] * 9, 0, 0)
LATENT = [Sample(str(i), [1] * (9 + i), [1] * (9 + i), 2 + 3 * i % 5, 1 + i % 3) for i in range(10)]
WITH_TEACHER = [replace(sample, teacher=TAUGHT) for sample in samples_of([4, 3, 5, 4, 6])]


@pytest.mark.parametrize("samples", [SAMPLES[:40], LATENT, WITH_TEACHER], ids=["text", "latents", "teacher"])
@pytest.mark.parametrize("tokens", [1, 20, 45, 100, 10**6])
@pytest.mark.parametrize("multiple", [1, 8])
def test_micro_batches_hold_no_more_tokens_than_they_may(samples, tokens, multiple):
    """On a GPU too, where widths are multiples of 8."""
    parts = [part.samples for part in micro_batches(samples, None, tokens, multiple)]
    assert [sample for part in parts for sample in part] == samples
    assert all(len(part) == 1 or padded(part, multiple) <= tokens for part in parts)
    assert parts == [part.samples for part in micro_batches(samples, None, tokens, multiple)]
    if tokens == 1:
        assert len(parts) == len(samples)
    if tokens == 10**6:
        assert len(parts) == 1


def test_micro_batches_of_text_are_as_large_as_they_may_be():
    parts = [part.samples for part in micro_batches(SAMPLES[:40], None, 100)]
    for part, following in pairwise(parts):
        assert padded([*part, following[0]]) > 100


def test_rows_limit_micro_batches_of_tokens_too():
    assert [len(part.samples) for part in micro_batches(samples_of([2] * 10), 4, 100)] == [4, 4, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_several_processes_have_equally_many_micro_batches_of_tokens(monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    parts = list(micro_batches(SAMPLES[:41], None, 60))
    assert all(len(part.samples) == 1 or padded(part.samples) <= 60 for part in parts)
    assert [one for part in parts if part.counts for one in part.samples] == SAMPLES[rank:41:2]
    monkeypatch.setenv("RANK", str(1 - rank))
    assert len(list(micro_batches(SAMPLES[:41], None, 60))) == len(parts)
