"""Plain text to score on, from a local file or from the Hub."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from copra.data.batch import Batch, collate
from copra.data.sequences import IGNORED, Sample
from copra.data.tokenization import beginning, pad_id
from copra.schema.scoring import Text
from copra.utils.containers import read_text_file
from copra.utils.errors import CopraError
from copra.utils.files import digest


def read_text(settings: Text, rows: int) -> list[str]:
    """Return the first `rows` passages that are not blank, or all if there are fewer.

    A local file holds one passage per line. A data set is streamed from its start, and none of its code is
    run.

    Raises:
        CopraError: the file, the data set or its column is missing, or holds no text.
    """
    passages: Iterable[str]
    if settings.path is not None:
        place, passages = str(settings.path), _of_file(settings.path)
    else:
        place, passages = f"{settings.dataset}, split {settings.split}", _of_dataset(settings)
    texts = list(islice((text.strip() for text in passages if text.strip()), rows))
    if not texts:
        raise CopraError(f"importance.text: {place} has no text in it. Name another one.")
    return texts


def text_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, max_tokens: int
) -> Iterator[Batch]:
    """Yield the passages in batches, truncated to `max_tokens` tokens, with labels on all but the first.

    A passage of a single token has no labels and is left out.
    """
    start = beginning(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_tokens)
    samples = [
        _sample(f"{number}", (start + tokens)[:max_tokens])
        for number, tokens in enumerate(encoded["input_ids"])
        if len(start + tokens) > 1
    ]
    for first in range(0, len(samples), batch_size):
        yield collate(samples[first : first + batch_size], pad_id(tokenizer))


def text_name(texts: Sequence[str], max_tokens: int) -> str:
    """Return 16 hexadecimal digits that name the calibration set: a digest of passages and `max_tokens`."""
    return digest(["text", max_tokens, list(texts)])[:16]


def _sample(name: str, tokens: list[int]) -> Sample:
    return Sample(name, tokens, [IGNORED, *tokens[1:]], first_latent=len(tokens), n_latents=0)


def _of_file(path: Path) -> list[str]:
    return read_text_file("importance.text.file", path).split("\n")


def _of_dataset(settings: Text) -> Iterator[str]:
    import datasets

    try:
        records = datasets.load_dataset(
            settings.dataset,
            settings.subset,
            split=settings.split,
            revision=settings.revision,
            streaming=True,
        )
        for record in records:
            if not isinstance(record.get(settings.column), str):
                raise CopraError(
                    f"importance.text.column: {settings.dataset} has no column of text named "
                    f"{settings.column!r}; its columns are {', '.join(record)}."
                )
            yield record[settings.column]
    except CopraError:
        raise
    except Exception as error:  # the Hub's client raises a dozen unrelated kinds
        raise CopraError(
            f"importance.text.dataset: {settings.dataset!r}, split {settings.split!r}, could not be loaded "
            f"({error}). Check the name, subset, split and the network, or give a file."
        ) from error
