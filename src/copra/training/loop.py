"""The training loop: optimize a model on samples and return the record for the manifest."""

import copy
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, get_scheduler

from copra.data.sequences import Markers, Sample, TokenRow
from copra.methods.method import Stage
from copra.methods.reasoning_model import ReasoningModel
from copra.schema.settings import Precision
from copra.schema.training import Training
from copra.training.adapters import adapted
from copra.training.log import check_lines
from copra.training.progress import Progress
from copra.training.samples import Samples
from copra.training.saves import CheckpointSchedule, Stopped
from copra.training.sharding import gather_full, shard
from copra.training.speed import Speed
from copra.training.state import full_state_dict, load_state, load_tensors, save_state
from copra.training.step import (
    LossModule,
    PendingStep,
    accumulate,
    cross_entropy_limit,
    is_broken,
    seed_step,
    skip_if,
)
from copra.training.tracking import Tracker
from copra.training.validation import Validation
from copra.utils import processes
from copra.utils.files import replacing
from copra.utils.heartbeat import Heartbeat, in_words, start_heartbeat

LOG = "training.jsonl"


@dataclass
class Trainer:
    """Trains one stage, in one process or in several together (`copra.utils.processes`).

    `accuracy` decodes the validation split and returns the share of right answers; it is called only
    if `training.needs_accuracy`. `state` is the folder for the state of an interrupted run,
    `saves` schedules its saves. `sharding` shards the weights over the processes; the model is unsharded
    again at the end. `node` is the model's name in progress displays.
    """

    model: PreTrainedModel
    stage: Stage
    training: Training
    rows: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    markers: Markers
    pad: int
    seed: int
    state: Path
    accuracy: Callable[[], float]
    precision: Precision = "float32"
    saves: CheckpointSchedule = field(default_factory=lambda: CheckpointSchedule(300))
    sharding: bool = False
    node: str = "model"
    tracker: Tracker | None = None
    extra_modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    teacher: ReasoningModel | None = None
    progress: Progress = field(default_factory=Progress)
    _steps: int = field(default=0, init=False)
    _heartbeat: Heartbeat = field(init=False)

    def run(self) -> dict[str, Any]:
        """Train to the end, from the start or from a saved state, and return the record for the manifest.

        Raises:
            CopraError: no row fits, or the loss is not finite or explodes.
            Stopped: a signal was received; the state is saved.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        accelerator = self.accelerator
        reasoner = ReasoningModel(self.model, self.extra_modules, self.teacher)
        with self.saves.listening():
            if self.sharding and processes.world_size() > 1:
                return self._train_sharded(reasoner, accelerator)
            with adapted(reasoner, self.training.lora, self.stage.frozen(), self.markers) as parameters:
                loss_module = accelerator.prepare_model(LossModule(reasoner, self.stage))
                return self._train(reasoner, loss_module, parameters, accelerator)

    @cached_property
    def accelerator(self) -> Accelerator:
        """The accelerator of all processes, created on first access.

        Creating it initializes the process group with the backend that fits the devices; an earlier
        collective call would choose another backend.
        """
        return Accelerator(
            mixed_precision="bf16" if self.precision == "bfloat16" else "no",
            cpu=self.model.device.type == "cpu",
            kwargs_handlers=[
                # Extra modules get no gradient in a process without latent rows. There are no buffers.
                DistributedDataParallelKwargs(
                    find_unused_parameters=len(self.extra_modules) > 0, broadcast_buffers=False
                ),
                # The first process may wait for another job, or write, for hours.
                InitProcessGroupKwargs(timeout=timedelta(days=1)),
            ],
        )

    def _train_sharded(self, reasoner: ReasoningModel, accelerator: Accelerator) -> dict[str, Any]:
        """Train a sharded copy of a reasoner, and load the trained weights into the original."""
        model, extra_modules = copy.deepcopy((reasoner.model, reasoner.extra_modules))
        sharded = ReasoningModel(model, extra_modules, reasoner.teacher)
        with adapted(sharded, None, self.stage.frozen(), self.markers):
            loss_module = accelerator.prepare_model(LossModule(sharded, self.stage), evaluation_mode=True)
            shard(loss_module, model)
            parameters = [{"params": [p for p in sharded.parameters() if p.requires_grad]}]
            record = self._train(sharded, loss_module, parameters, accelerator)
        load_tensors(reasoner, full_state_dict(sharded))
        return record

    def _train(
        self,
        reasoner: ReasoningModel,
        loss_module: nn.Module,
        parameters: list[dict[str, Any]],
        accelerator: Accelerator,
    ) -> dict[str, Any]:
        """Train `parameters`, given as optimizer groups, and return the record for the manifest.

        `loss_module` is the reasoner's loss, wrapped for all processes.
        """
        optimizer = accelerator.prepare_optimizer(self._new_optimizer(parameters))
        total = self.samples.total_steps()
        scheduler = self._new_scheduler(optimizer, total)
        done = self._resume(reasoner, optimizer, scheduler)
        validation = Validation(
            self.stage,
            self.training,
            self.samples.validation,
            self.pad,
            total,
            self.state,
            self.accuracy,
            self.progress,
        )
        self._heartbeat = start_heartbeat(self.state, self.node, total)
        layers = self.stage.extra_modules().get("step_decoder", {}).get("layers", 0)
        speed = Speed(reasoner, layers, self._used_precision, processes.world_size(), self.training.lora_rank)
        speed.start(self.progress)
        # After a broken step no later one changes the weights; the host reads the flag one step later.
        broken = torch.zeros((), device=accelerator.device)
        before: tuple[PendingStep, float] | None = None
        file = self.state / LOG if accelerator.is_main_process else os.devnull
        with open(file, "a") as log, _bar(done, total) as bar:
            for step, batch, restarts in self.samples.batches(done):
                if restarts:
                    optimizer.state.clear()
                pending, broken = self._optimize(loss_module, optimizer, accelerator, broken, batch, step)
                rate = scheduler.get_last_lr()[0]
                scheduler.step()
                # The numbers of the previous step have arrived by now, so reading them does not stall a GPU.
                if before is not None:
                    self._write(log, self._line(*before), speed, bar)
                before = pending, rate
                saving = step < total and any(processes.all_gather(self.saves.is_due(step)))
                if step in validation.steps or saving:
                    line = self._line(*before)
                    before = None
                    if step in validation.steps:
                        line |= validation.run(loss_module, reasoner, step)
                    self._write(log, line, speed, bar)
                bar.update()
                self._steps = step
                if validation.stop_reason:
                    break
                if saving:
                    log.flush()
                    if accelerator.is_main_process:
                        os.fsync(log.fileno())
                    self._save(step, reasoner, optimizer)
        ending = validation.ending(self._steps)
        if "stop_reason" in ending and accelerator.is_main_process:
            tqdm.write("ended after step {steps} of at most {max_steps}: {stop_reason}".format(**ending))
        if self.training.select_best_by != "last":
            validation.load_best(reasoner)
        return self._record(ending, validation.selected)

    def _record(self, ending: dict[str, Any], selected: dict[str, Any]) -> dict[str, Any]:
        """Return the record for the manifest; `ending` and `selected` are the validation's."""
        return {
            **ending,
            "precision": self._used_precision,
            "rows": len(self.samples.first),
            "left_out_too_long": len(self.rows) - len(self.samples.first),
            "selected": selected,
            "work": {
                reader: dict(zip(("tokens", "context", "supervised"), sums, strict=True))
                for reader, sums in self.progress.work.items()
            },
        }

    def _new_optimizer(self, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of `parameters`, given as optimizer groups."""
        return torch.optim.AdamW(
            parameters,
            lr=self.training.learning_rate,
            betas=self.training.betas,
            weight_decay=self.training.weight_decay,
            fused=True,
        )

    def _new_scheduler(self, optimizer: torch.optim.Optimizer, total: int) -> Any:
        """Return the scheduler of the learning rate over `total` steps."""
        # The "constant" schedule of transformers has no warm-up.
        schedule = self.training.schedule.replace("constant", "constant_with_warmup")
        warmup = max(self.training.warmup_steps, round(self.training.warmup_ratio * total))
        return get_scheduler(schedule, optimizer, min(warmup, total), total)

    @property
    def _used_precision(self) -> Precision:
        """The precision of matrix products: bfloat16 if the weights are, else the given precision."""
        return "bfloat16" if self.model.dtype == torch.bfloat16 else self.precision

    def log_text(self) -> str:
        """Return the JSON lines of the whole training, after its end.

        Raises:
            CopraError: the lines are not exactly those of all steps.
        """
        text = (self.state / LOG).read_text()
        check_lines(text.splitlines(), self._steps, self.state / LOG)
        return text

    def delete_state(self) -> None:
        """Delete the state folder, after the checkpoint has been written."""
        shutil.rmtree(self.state, ignore_errors=True)

    @cached_property
    def samples(self) -> Samples:
        """The samples of the training; the rows are laid out when they are first needed."""
        return Samples(self.stage, self.training, self.rows, self.validation, self.markers, self.seed)

    def _save(self, step: int, reasoner: ReasoningModel, optimizer: torch.optim.Optimizer) -> None:
        """Save the state.

        Raises:
            Stopped: a process has received a signal.
        """
        save_state(self.state, step, reasoner, optimizer, {"progress": asdict(self.progress)})
        self.saves.saved()
        signals = [number for number in processes.all_gather(self.saves.signal) if number]
        if signals:
            raise Stopped(
                f"ended by {signal.Signals(signals[0]).name} after step {step}, which is saved in "
                f"{self.state}. Run it again: it goes on from there.",
                signals[0],
            )

    def _resume(self, reasoner: ReasoningModel, optimizer: torch.optim.Optimizer, scheduler: Any) -> int:
        """Load the newest state, if any, and return the number of finished steps."""
        record = load_state(self.state, reasoner, optimizer)
        log = self.state / LOG
        if record is None:
            if processes.rank() == 0:
                log.unlink(missing_ok=True)
            return 0
        self.progress = Progress(**record["progress"])
        done = record["step"]
        with warnings.catch_warnings():
            # PyTorch expects optimizer steps first, but those were taken before the interruption.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(done):
                scheduler.step()
        if processes.rank() == 0:
            lines = log.read_text().splitlines()[:done] if log.is_file() else []
            check_lines(lines, done, log)
            with replacing(log) as temporary:
                temporary.write_text("".join(line + "\n" for line in lines))
            tqdm.write(f"going on after step {done}")
        return done

    def _line(self, pending: PendingStep, learning_rate: float) -> dict[str, Any]:
        """Return the log line of a step, blocking until the device has computed it."""
        line, found = pending.read()
        weights = self.stage.loss_weights()
        shown = {name: mean for name, mean in found.items() if len(weights) > 1 or name not in weights}
        return line | shown | {"learning_rate": learning_rate}

    def _write(self, log: TextIO, line: dict[str, Any], speed: Speed, bar: tqdm) -> None:
        """Write a line to log, heartbeat and tracker; every few seconds update speed and memory."""
        log.write(json.dumps(line) + "\n")
        if self._heartbeat.record(line["step"], lambda: speed.rates(self.progress)):
            log.flush()
            bar.set_postfix_str(in_words(speed.latest), refresh=False)
        if self.tracker is not None:
            self.tracker.log(line, line["step"])

    def _optimize(
        self,
        loss_module: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        broken: Tensor,
        batch: Sequence[Sample],
        step: int,
    ) -> tuple[PendingStep, Tensor]:
        """Take one optimizer step; each loss term is a mean over the whole batch of all processes.

        A single process does not synchronize with the device: a broken step, or one after a broken step
        (`broken`), changes no weight. Several processes read the step together before they take it. Return
        the step and the new `broken`.
        """
        loss_module.train(self.stage.dropout)
        seed_step(self.seed, step)
        loss, means = accumulate(
            loss_module,
            accelerator,
            batch,
            weights=self.stage.loss_weights(),
            counts=self.stage.normalizers(batch),
            pad=self.pad,
            size=self.training.micro_batch_size,
            tokens=self.training.micro_batch_tokens,
        )
        norm = gather_full(accelerator.clip_grad_norm_(loss_module.parameters(), self.training.max_grad_norm))
        limit = cross_entropy_limit(self.model.get_output_embeddings().out_features)
        if processes.world_size() == 1:
            broken = torch.maximum(broken, is_broken(loss, norm, means, limit))
            skip_if(broken, optimizer)
        pending = PendingStep(step, batch, loss, norm, means, limit, broken)
        if processes.world_size() > 1:
            pending.read()
        optimizer.step()
        optimizer.zero_grad()
        self.progress.count(self.stage.flop_workload(batch))
        return pending, broken


def _bar(done: int, total: int) -> tqdm:
    """Return the progress bar of a training, disabled in all processes but the first."""
    return tqdm(
        total=total,
        initial=done,
        unit="step",
        mininterval=5,
        dynamic_ncols=True,
        disable=processes.rank() > 0,
    )
