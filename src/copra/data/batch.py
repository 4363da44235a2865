"""Collate training sequences into padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from copra.data.sequences import IGNORED, Sample, rounded_up


@dataclass
class Batch:
    """Padded samples, [B, N] each; `first_latent` is the same column in every row.

    `mask` is 1 on tokens and 0 on padding, `positions` counts the tokens of each row from 0, `latent`
    marks latent positions, `read` [B, R] are the columns whose hidden states the loss reads. `teacher` holds
    the teacher's sequences in the same order, `explained` the target texts of the latents.

    Reading a tensor from the device makes the host wait for all its queued work, so two values are computed
    in advance on the host: `supervised` [S], the indices in `tokens.flatten()` whose next token is a label,
    in order, and `full_columns`, the number of first columns in which no row has padding.
    """

    ids: list[str]
    tokens: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor
    latent: Tensor
    read: Tensor
    supervised: Tensor
    full_columns: int
    first_latent: int
    max_latents: int
    teacher: "Batch | None" = None
    explained: tuple[tuple[tuple[int, ...], ...], ...] = ()
    latents_per_text: int = 1

    def to(self, device: torch.device) -> "Batch":
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = _moved(value, device)
            elif isinstance(value, Batch):
                moved[name] = value.to(device)
        return Batch(**moved)

    def __len__(self) -> int:
        return len(self.ids)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. Only from pinned memory is the copy to a GPU asynchronous."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def collate(samples: Sequence[Sample], pad: int, latents: int = 0, multiple: int = 1) -> Batch:
    """Pad samples to one width, with the first latents in one column.

    Without latents every row starts in column 0 (padding on the right only); with latents the
    prefixes are padded on the left, so that one pass computes the i-th latent of all rows. The batch is read
    in as many passes as if a row had at least `latents` latents. The width and the first latent's column are
    rounded up to a multiple of `multiple` (see `width_multiple`).
    """
    max_latents = max(latents, *(sample.n_latents for sample in samples))
    column = rounded_up(max(sample.first_latent for sample in samples), multiple) if max_latents else 0
    starts = [column - sample.first_latent if max_latents else 0 for sample in samples]
    ends = [start + len(sample.tokens) for start, sample in zip(starts, samples, strict=True)]
    width = rounded_up(max(column + max_latents, *ends), multiple)
    columns = torch.arange(width)
    inside = (columns >= torch.tensor(starts)[:, None]) & (columns < torch.tensor(ends)[:, None])
    tokens = torch.full((len(samples), width), pad)
    tokens[inside] = torch.tensor([token for sample in samples for token in sample.tokens])
    labels = torch.full_like(tokens, IGNORED)
    labels[inside] = torch.tensor([label for sample in samples for label in sample.labels])
    mask = inside.long()
    last_latents = column + torch.tensor([sample.n_latents for sample in samples])
    read = [[start + place for place in sample.read] for start, sample in zip(starts, samples, strict=True)]
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    return Batch(
        ids=[sample.id for sample in samples],
        tokens=tokens,
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0),
        labels=labels,
        latent=(columns >= column) & (columns < last_latents[:, None]),
        read=torch.tensor(read, dtype=torch.long),
        supervised=functional.pad(labels[:, 1:] != IGNORED, (0, 1)).flatten().nonzero().flatten(),
        full_columns=0 if any(starts) else min(ends),
        first_latent=column,
        max_latents=max_latents,
        teacher=collate(teachers, pad, multiple=multiple) if teachers else None,
        explained=tuple(sample.explained for sample in samples),
        latents_per_text=samples[0].latents_per_text,
    )


def width_multiple(device: torch.device) -> int:
    """Return the multiple that batches on a device are padded to.

    A GPU's allocator reuses memory of earlier sizes, and its attention kernels copy masks whose rows do not
    begin at a multiple of 8 elements. On a CPU padding has only costs.
    """
    return 8 if device.type == "cuda" else 1
