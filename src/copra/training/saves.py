"""When a training saves its state: every so often, and before it is ended from outside."""

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
    """The work was ended by a signal, and goes on from here when it is run again."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


@dataclass
class CheckpointSchedule:
    """CheckpointSchedule are due `seconds` after the last one, after each `steps` steps, and when a signal
    has come."""

    seconds: float
    steps: int | None = None
    signal: int | None = None
    """The signal that asks this process to end: SIGTERM, as from SLURM at the end of a job's time, or
    SIGINT."""
    last: float = field(default_factory=lambda: time.monotonic())

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        by_step = self.steps is not None and step % self.steps == 0
        return self.signal is not None or by_step or time.monotonic() - self.last > self.seconds

    def done(self) -> None:
        """A state has been saved."""
        self.last = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the first signal only asks for an end; a second one ends the process as ever. The end of
        Snakemake counts as a first signal, too."""
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
