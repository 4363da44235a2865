"""Check, before a run, that tokenizers with a closed vocabulary have the words of the other tasks asked."""

from functools import cache

from copra.experiment.workflow import Workflow
from copra.tasks.prepare import Prepared, prepared
from copra.tasks.task import Split
from copra.utils.errors import CopraError


def check_words(workflow: Workflow) -> None:
    """Check the words of tasks in `evaluation.tasks` against the tokenizers of bases from scratch.

    Rows on the Hub are not known yet: their evaluation makes the same check (`copra.data.tokenization`).

    Raises:
        CopraError: one line per base and task with words that the base's tokenizer lacks; or the rows of a
            task cannot be prepared.
    """
    experiment = workflow.experiment

    @cache
    def splits(task: str) -> dict[Split, Prepared]:
        try:
            return prepared(experiment.tasks[task])
        except CopraError as error:
            raise CopraError(f"tasks.{task}: {error}") from None

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
        # Their imports take 1 s.
        from copra.data.tokenization import check_words, train_tokenizer

        tokenizer = train_tokenizer(scratch, splits(own)["train"].rows)
        rows = splits(task)[experiment.evaluation.split].rows[: experiment.evaluation.limit]
        try:
            check_words(tokenizer, rows, task)
        except CopraError as error:
            problems.append(f"bases.{base_name}: {error}")
    if problems:
        raise CopraError("\n".join(problems))
