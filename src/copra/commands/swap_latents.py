"""copra swap-latents: answer questions with latent inputs of another source than the checkpoint itself."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pandas

from copra.commands.answering import Answering, add_answering, load_to_answer
from copra.commands.common import rows_of, settings_of
from copra.commands.resources import add_processes
from copra.evaluation.answer_cache import AnswerCache
from copra.evaluation.latent_sources import answers_by_source, summary
from copra.schema.latents import LatentSource, with_own
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import write_parquet
from copra.utils.locking import hold


class SwapLatentsSettings(Answering):
    latents_from: list[LatentSource]
    """Sources of the inputs at latent positions; `own` is added."""


def arguments(parser: ArgumentParser) -> None:
    add_answering(
        parser,
        "checkpoint that answers with recurrent latents",
        "folder for answers of unfinished evaluations",
    )
    add_processes(parser)
    parser.add_argument(
        "--output", type=Path, required=True, help="Parquet table, one row per source of latents"
    )


def run(options: Namespace) -> None:
    settings = settings_of(options, SwapLatentsSettings)
    checkpoint, origin = load_to_answer(options, settings.precision, settings.split)
    if checkpoint.decoding is None or not checkpoint.decoding.has_recurrent_latents:
        raise CopraError(
            f"{options.model}: this model has no latents that are hidden states, so none to replace."
        )
    rows = rows_of(options.data, settings.split, settings.limit)
    sources = with_own(settings.latents_from)
    questions = options.data / f"{settings.split}.parquet"
    answer_cache = AnswerCache(
        options.state, checkpoint, settings.canonical(), questions, len(sources) * len(rows)
    )
    with hold(answer_cache.state, settings.node, options.output) as made:
        if made:
            return
        found = answers_by_source(
            checkpoint,
            rows,
            sources,
            max_new_tokens=settings.max_new_tokens,
            answers=settings.answers,
            batch_size=settings.batch_size,
            answer_cache=answer_cache.get_or_generate,
        )
        if processes.rank():
            return
        table = [
            {"node": settings.node, "source": source, "precision": checkpoint.precision}
            | summary(source, found, settings.answers)
            for source in sources
        ]
        write_parquet(options.output, pandas.DataFrame(table), origin)
        answer_cache.delete()
