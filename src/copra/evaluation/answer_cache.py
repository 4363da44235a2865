"""A cache of answers, batch by batch, so that a killed evaluation resumes with the missing ones."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copra.generation.decode import Answer
from copra.utils import processes
from copra.utils.files import digest, file_sha256
from copra.utils.heartbeat import Heartbeat, start_heartbeat
from copra.utils.result_cache import ResultCache

if TYPE_CHECKING:
    from copra.models.checkpoint import Checkpoint


class AnswerCache:
    """A cache below `state` of a checkpoint's answers; it also writes the heartbeat of their evaluation.

    The cache key holds the `settings` of a command (with its `node`), the checkpoint, and the contents of the
    question file `data`. `total` is the number of questions to answer.
    """

    def __init__(
        self, state: Path, checkpoint: "Checkpoint", settings: dict[str, Any], data: Path, total: int
    ):
        key = {"settings": settings, "model": checkpoint.identity, "data": file_sha256(data)}
        self.cache = ResultCache(state, "answers", key)
        self.node = settings["node"]
        self.total = total
        self.done = 0
        self.heartbeat: Heartbeat | None = None

    @property
    def state(self) -> Path:
        """The folder of the cache."""
        return self.cache.folder

    def get_or_generate(self, batch: Any, answer: Callable[[], list[Answer]]) -> list[Answer]:
        """Return the answers of a batch, cached or generated (`copra.generation.decode.GetOrGenerate`)."""
        if self.heartbeat is None:
            self.heartbeat = start_heartbeat(self.cache.folder, self.node, self.total, "questions")
        value = self.cache.get_or_compute(
            digest(batch), lambda: {"answers": [asdict(each) for each in answer()]}
        )
        answers = [Answer(**each) for each in value["answers"]]
        # An estimate: the other processes have answered about as many as this one.
        self.done += len(answers) * processes.world_size()
        self.heartbeat.record(min(self.done, self.total))
        return answers

    def delete(self) -> None:
        """Delete the cache, once the results made from it are saved."""
        self.cache.delete()
