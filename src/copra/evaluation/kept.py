"""Answers that are kept batch by batch, so that a killed evaluation goes on with those that are missing."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copra.generation.decode import Answer
from copra.utils import processes
from copra.utils.files import digest, file_sha256
from copra.utils.heartbeat import heartbeat, start_heartbeat
from copra.utils.result_cache import ResultCache

if TYPE_CHECKING:
    from copra.models.checkpoint import Checkpoint


class AnswerCache:
    """Keeps the answers of a checkpoint below `state`, and says there how far their evaluation is.

    They belong to exactly these settings of a verb, with its `node`, on the questions of the file `data`;
    `total` of them will be asked for.
    """

    def __init__(
        self, state: Path, checkpoint: "Checkpoint", settings: dict[str, Any], data: Path, total: int
    ):
        key = {"settings": settings, "model": checkpoint.identity, "data": file_sha256(data)}
        self.cache = ResultCache(state, "answers", key)
        self.node = settings["node"]
        self.total = total
        self.done = 0

    @property
    def state(self) -> Path:
        """The folder in which the answers are kept."""
        return self.cache.folder

    def keep(self, batch: Any, answer: Callable[[], list[Answer]]) -> list[Answer]:
        """The answers of a batch, kept or made (`copra.generation.decode.Keep`)."""
        if not self.done:
            start_heartbeat(self.cache.folder, self.node, self.total, "questions")
        value = self.cache.get_or_compute(
            digest(batch), lambda: {"answers": [asdict(each) for each in answer()]}
        )
        answers = [Answer(**each) for each in value["answers"]]
        # The other processes are about as far as this one.
        self.done += len(answers) * processes.world_size()
        heartbeat(self.cache.folder, min(self.done, self.total))
        return answers

    def forget(self) -> None:
        """Remove what is kept, once what was made of it is safe."""
        self.cache.forget()
