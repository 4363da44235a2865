"""Schedule the saves of a training's state: at intervals, and when a signal ends the process."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

from copra.utils.ending import ends_by
from copra.utils.errors import CopraError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(CopraError):
    """Raised when a signal has ended the work after a save; the next run resumes from there."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


@dataclass
class CheckpointSchedule:
    """Decides when to save: `seconds` after the last save, after every `steps` steps, and on a signal."""

    seconds: float
    steps: int | None = None
    signal: int | None = None
    """The signal received: SIGTERM, which SLURM sends at the end of a job's time, or SIGINT (None: none)."""
    last: float = field(default_factory=lambda: time.monotonic())

    def is_due(self, step: int) -> bool:
        """True if the state is to be saved after this step."""
        by_step = self.steps is not None and step % self.steps == 0
        return self.signal is not None or by_step or time.monotonic() - self.last > self.seconds

    def saved(self) -> None:
        """Record that a state has been saved."""
        self.last = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record the first signal within this context; a second one ends the process as usual.

        The end of Snakemake is recorded as a first signal, too.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def ask(number: int, frame: FrameType | None) -> None:
            self.signal = number
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def end() -> None:
            self.signal = self.signal or signal.SIGTERM

        for number in SIGNALS:
            signal.signal(number, ask)
        try:
            with ends_by(end):
                yield
        finally:
            restore()
