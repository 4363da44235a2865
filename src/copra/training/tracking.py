"""Log training lines to an experiment tracker: TensorBoard, Trackio or Weights & Biases.

A convenience in addition to `training.jsonl`, which has the same numbers: no part of a result. A tracker's
files stay in a folder of this machine.
"""

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from copra.utils import processes
from copra.utils.errors import CopraError

Kind = Literal["tensorboard", "trackio", "wandb"]
KINDS: tuple[Kind, ...] = ("tensorboard", "trackio", "wandb")


class Tracker:
    """Passes the numbers of training lines to one of accelerate's trackers; without one, does nothing.

    Of several processes only the first one tracks. A tracker that fails after its start is disabled with a
    warning, since it must not end a training.
    """

    def __init__(self, kind: Kind | None, folder: Path, node: str):
        """`folder` is the folder for the files of the model `node`.

        Raises:
            CopraError: the tracker's library is not installed.
        """
        if kind is not None and find_spec(kind) is None:
            raise CopraError(
                f"tracking: {kind} is not installed. Run `pip install {kind}` in copra's environment, or set "
                "tracking: null."
            )
        self.kind = None if processes.rank() else kind
        self.folder = folder
        self.node = node
        self._tracker: Any = None

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Log the numbers of a line. The first call starts the tracker; accelerate must be initialized.

        Raises:
            CopraError: the tracker does not start.
        """
        if self.kind is not None and self._tracker is None:
            self._tracker = self._started()
        values = {name: value for name, value in line.items() if name != "step"}
        self._try("log", {name: value for name, value in values.items() if _is_number(value)}, step=step)

    def finish(self) -> None:
        """Close the tracker, once the training is over."""
        self._try("finish")
        self.kind = self._tracker = None

    def _try(self, call: str, *arguments: Any, **options: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, call)(*arguments, **options)
        except Exception as error:  # third-party trackers raise any exception
            print(f"tracking: {self.kind} failed and is left out from here on: {error}", file=sys.stderr)
            self.kind = self._tracker = None

    def _started(self) -> Any:
        """Start and return one of accelerate's trackers, which writes to the folder."""
        from accelerate import tracking

        place = str(self.folder.absolute())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.kind == "tensorboard":
                tracker = tracking.TensorBoardTracker("", logging_dir=place)
            elif self.kind == "wandb":
                # Offline by default; WANDB_MODE=online uploads.
                mode = os.environ.get("WANDB_MODE", "offline")
                tracker = tracking.WandBTracker("copra", name=self.node, dir=place, mode=mode)
            else:
                os.environ.setdefault("TRACKIO_DIR", place)
                tracker = tracking.TrackioTracker("copra", name=self.node, resume="allow", embed=False)
            # `self.kind` is None in all processes but the first.
            tracker.main_process_only = False
            tracker.start()
        except Exception as error:
            raise CopraError(
                f"tracking: {self.kind} could not be started ({error}). Repair that, or set tracking: null."
            ) from error
        return tracker


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
