"""Check, before a run, that tokenizers with a closed vocabulary have the words of the other tasks asked."""

from functools import cache

from copra.plan.estimate import Estimate
from copra.schema.base import FromScratch
from copra.tasks.prepare import prepared
from copra.tasks.task import Row, Split
from copra.utils.errors import CopraError


def check_words(estimate: Estimate) -> None:
    """Check the words of tasks in `evaluation.tasks` against the tokenizers of bases from scratch.

    Of rows that are drawn, a sample is checked first, and all rows only if words seem to lack: to draw them
    takes time. Rows on the Hub are not known yet. Their evaluation makes the same check, of all rows
    (`copra.data.tokenization`).

    Raises:
        CopraError: one line per base and task with words that the base's tokenizer lacks; or the rows of a
            task cannot be prepared.
    """
    workflow, experiment = estimate.workflow, estimate.experiment

    @cache
    def all_rows(task: str) -> dict[Split, list[Row]]:
        try:
            return {split: each.rows for split, each in prepared(experiment.tasks[task]).items()}
        except CopraError as error:
            raise CopraError(f"tasks.{task}: {error}") from None

    def sample(task: str) -> dict[Split, list[Row]]:
        return all_rows(task) if experiment.tasks[task].paths() else estimate.preview(task).rows or {}

    pairs = {}
    for evaluation in workflow.on_other_tasks:
        node, task = workflow.node_and_task(evaluation)
        base = workflow.tree.path_to(node.name)[0]
        scratch = experiment.bases[base.recipe].from_scratch
        known = experiment.tasks[task].is_local and experiment.tasks[base.task].is_local
        if scratch is not None and scratch.tokenizer == "words" and known and task != base.task:
            pairs[base.recipe, task] = scratch, base.task
    problems = []
    for (base_name, task), (scratch, own) in pairs.items():
        split, limit = experiment.evaluation.split, experiment.evaluation.limit
        for rows in (sample, all_rows):
            lacking = _lacking(scratch, rows(own)["train"], rows(task)[split][:limit], task)
            if lacking is None:
                break
        if lacking is not None:
            problems.append(f"bases.{base_name}: {lacking}")
    if problems:
        raise CopraError("\n".join(problems))


def _lacking(scratch: FromScratch, trained_on: list[Row], asked: list[Row], task: str) -> str | None:
    """Return the error about words of `asked` that a tokenizer trained on other rows lacks, if any."""
    # Their imports take 1 s.
    from copra.data.tokenization import check_words, train_tokenizer

    try:
        check_words(train_tokenizer(scratch, trained_on), asked, task)
    except CopraError as error:
        return str(error)
    return None
