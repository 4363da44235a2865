"""The training loop: samples in, optimised model and its record out."""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, get_scheduler

from copra.errors import CopraError
from copra.files import replacing
from copra.reasoning.forward import Batch, Terms, collate, weighted
from copra.reasoning.layout import Markers, Sample, TokenRow
from copra.reasoning.method import Stage
from copra.reasoning.thinker import Thinker
from copra.training.adapters import adapted
from copra.training.batches import epoch_batches, micro_batches
from copra.training.progress import Means, Progress
from copra.training.settings import Training
from copra.training.state import load_state, save_state

LOG = "training.jsonl"
BEST = "best.safetensors"


class Objective(nn.Module):
    """A thinker with its stage's loss, as one module, so that wrappers see every forward pass."""

    def __init__(self, thinker: Thinker, stage: Stage):
        super().__init__()
        self.thinker = thinker
        self.stage = stage

    def forward(self, batch: Batch) -> Terms:
        return self.stage.loss(self.thinker, batch)


@dataclass
class Trainer:
    """One stage of training.

    `accuracy` decodes the validation split and returns the share of right answers; it is called only
    where `training.select` asks for it. `state` is the folder in which an interrupted run is kept.
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
    precision: str = "float32"
    save_every_seconds: float = 300.0
    parts: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    teacher: Thinker | None = None
    progress: Progress = field(default_factory=Progress)

    def run(self) -> dict[str, Any]:
        """Train to the end, from the start or from a saved state; returns the record for the manifest.

        Raises:
            CopraError: no row fits, or the loss is not finite or explodes.
        """
        torch.manual_seed(self.seed)
        self.state.mkdir(parents=True, exist_ok=True)
        accelerator = Accelerator(
            mixed_precision="bf16" if self.precision == "bfloat16" else "no",
            cpu=self.model.device.type == "cpu",
        )
        thinker = Thinker(self.model, self.parts, self.teacher)
        with adapted(thinker, self.training.lora, self.stage.frozen(), self.markers) as parameters:
            return self._train(thinker, parameters, accelerator)

    def _train(
        self, thinker: Thinker, parameters: list[dict[str, Any]], accelerator: Accelerator
    ) -> dict[str, Any]:
        """Train what is to be trained, `parameters` in groups of the optimizer."""
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.training.learning_rate,
            betas=self.training.betas,
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        objective, optimizer = accelerator.prepare(Objective(thinker, self.stage), optimizer)
        samples, left_out = self.samples(0)
        validation = self.validation_samples()
        total = self.total_steps(len(samples))
        if total < self.stage.least_steps:
            raise CopraError(
                f"training: this stage moves on with each of {self.stage.least_steps} parts of its training, "
                f"and {total} optimizer steps are fewer. Raise training.steps or training.epochs."
            )
        # What transformers calls "constant" knows no warm-up.
        schedule = self.training.schedule.replace("constant", "constant_with_warmup")
        warmup = max(self.training.warmup_steps, round(self.training.warmup_share * total))
        scheduler = get_scheduler(schedule, optimizer, min(warmup, total), total)
        done = self._resume(thinker, optimizer, scheduler)
        last_save = time.monotonic()
        looks = {
            math.ceil(total * (i + 1) / self.training.validations) for i in range(self.training.validations)
        }
        with open(self.state / LOG, "a") as log:
            for step, batch in self._batches(samples, done, total):
                moved = self.stage.moves and self.stage.at(step, total) != self.stage.at(step - 1, total)
                if moved and step > 1:
                    optimizer.state.clear()
                line = self._optimise(objective, optimizer, accelerator, batch, step)
                line["learning_rate"] = scheduler.get_last_lr()[0]
                scheduler.step()
                if step in looks:
                    line |= self._validate(objective, thinker, validation, step, last=step == total)
                log.write(json.dumps(line) + "\n")
                if step < total and time.monotonic() - last_save > self.save_every_seconds:
                    log.flush()
                    os.fsync(log.fileno())
                    save_state(self.state, step, thinker, optimizer, {"progress": asdict(self.progress)})
                    last_save = time.monotonic()
        if self.training.select != "last":
            load_model(thinker, self.state / BEST)
        return {
            "steps": total,
            "rows": len(samples),
            "left_out_too_long": left_out,
            "selected": {
                "by": self.selects_by,
                "step": self.progress.best_step,
                "value": abs(self.progress.best_value),
            },
            "work": {
                reader: dict(zip(("tokens", "context", "supervised"), sums, strict=True))
                for reader, sums in self.progress.work.items()
            },
        }

    @property
    def selects_by(self) -> str:
        """What chooses the checkpoint: the loss where accuracy is asked of a model that cannot answer yet."""
        return (
            "loss" if self.training.select == "accuracy" and not self.stage.answers else self.training.select
        )

    def log_text(self) -> str:
        """The JSON lines of the whole training."""
        return (self.state / LOG).read_text()

    def forget(self) -> None:
        """Remove the state folder, once the checkpoint is safe."""
        shutil.rmtree(self.state, ignore_errors=True)

    def total_steps(self, n_samples: int) -> int:
        """Optimizer steps of the stage."""
        if self.training.steps is not None:
            return self.training.steps
        return max(1, round(self.training.epochs * math.ceil(n_samples / self.training.batch_size)))

    def samples(self, epoch: int) -> tuple[list[Sample], int]:
        """The samples of an epoch that fit, and how many do not."""
        draw = Random(f"layouts {self.seed} {epoch}")
        samples = [self.stage.lay_out(row, self.markers, draw) for row in self.rows]
        fitting = self._fitting(samples, "train")
        return fitting, len(samples) - len(fitting)

    def validation_samples(self) -> list[Sample]:
        """The samples of the validation split that fit."""
        return self._fitting([self.stage.lay_out(row, self.markers) for row in self.validation], "validation")

    def _fitting(self, samples: Sequence[Sample], split: str) -> list[Sample]:
        """The samples that are not too long."""
        fitting = [sample for sample in samples if sample.length <= self.training.max_tokens]
        if not fitting:
            raise CopraError(
                f"no {split} row fits training.max_tokens = {self.training.max_tokens} tokens; the shortest "
                f"has {min((sample.length for sample in samples), default=0)}. Raise it, or train on "
                "another task."
            )
        return fitting

    def _batches(
        self, samples: Sequence[Sample], done: int, total: int
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Batches number `done`+1 to `total`, the same ones whether resumed or not.

        `samples` are those of epoch 0; they are drawn again each epoch where layouts are mixed, and batch
        by batch where the stage moves on as training goes.
        """
        rows = {row.id: row for row in self.rows} if self.stage.moves else {}
        step, epoch = 0, 0
        bar = tqdm(total=total, initial=done, unit="step", mininterval=5, dynamic_ncols=True)
        while step < total:
            if self.stage.draws and epoch:
                samples, _ = self.samples(epoch)
            for batch in epoch_batches(samples, self.training.batch_size, self.seed, epoch):
                step += 1
                if step > total:
                    break
                if step > done:
                    if self.stage.moves:
                        stage, draw = self.stage.at(step, total), Random(f"layouts {self.seed} step {step}")
                        batch = [stage.lay_out(rows[sample.id], self.markers, draw) for sample in batch]
                    yield step, batch
                    bar.update()
            epoch += 1
        bar.close()

    def _resume(self, thinker: Thinker, optimizer: torch.optim.Optimizer, scheduler: Any) -> int:
        """Load the newest state, if any; returns the number of steps that are done."""
        record = load_state(self.state, thinker, optimizer)
        log = self.state / LOG
        if record is None:
            log.unlink(missing_ok=True)
            return 0
        self.progress = Progress(**record["progress"])
        done = record["step"]
        with warnings.catch_warnings():
            # PyTorch misses the optimizer's steps, which were taken before the interruption.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(done):
                scheduler.step()
        lines = log.read_text().splitlines()[:done]
        with replacing(log) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines))
        tqdm.write(f"going on after step {done}")
        return done

    def _optimise(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        batch: Sequence[Sample],
        step: int,
    ) -> dict[str, Any]:
        """One optimizer step on the loss, each term a mean over the whole batch."""
        objective.train(self.stage.dropout)
        weights, counts = self.stage.weigh(), self.stage.counts(batch)
        total = torch.zeros((), device=self.model.device)
        means = Means()
        for part in micro_batches(batch, self.training.micro_batch_size):
            terms = objective(collate(part, self.pad).to(self.model.device))
            loss = weighted(terms, weights, counts)
            accelerator.backward(loss)
            total += loss.detach()
            means.add(terms)
        norm = accelerator.clip_grad_norm_(objective.parameters(), self.training.clip_norm)
        found = means.values()
        self._guard(total.item(), norm.item(), found.get("cross_entropy", 0.0), batch, step)
        optimizer.step()
        optimizer.zero_grad()
        self.progress.count(work for sample in batch for work in self.stage.work(sample))
        line = {"step": step, "loss": total.item(), "gradient_norm": norm.item()}
        return line | {name: mean for name, mean in found.items() if len(weights) > 1 or name not in weights}

    def _guard(
        self, loss: float, norm: float, cross_entropy: float, batch: Sequence[Sample], step: int
    ) -> None:
        """Stop before a broken step reaches the weights."""
        # A model that guesses all tokens alike has a loss of ln V; three times that is no model any more.
        limit = 3 * math.log(self.model.get_output_embeddings().out_features)
        if math.isfinite(loss) and math.isfinite(norm) and cross_entropy <= limit:
            return
        rows = ", ".join(sample.id for sample in batch[:8])
        raise CopraError(
            f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: the training has broken down (limit "
            f"for cross-entropy {limit:.4g}). Batch of rows {rows}{', ...' if len(batch) > 8 else ''}. Lower "
            "training.learning_rate, raise training.warmup_steps, or look at those rows."
        )

    @torch.no_grad()
    def _validate(
        self, objective: nn.Module, thinker: Thinker, samples: Sequence[Sample], step: int, last: bool
    ) -> dict[str, float]:
        """Loss (and accuracy, where it selects) on the validation split; remembers the best weights."""
        objective.eval()
        means = Means()
        size = self.training.micro_batch_size or self.training.batch_size
        for part in micro_batches(sorted(samples, key=lambda sample: len(sample.tokens)), size):
            means.add(objective(collate(part, self.pad).to(self.model.device)))
        values = means.values()
        weights = self.stage.weigh()
        loss = sum(weight * values[name] for name, weight in weights.items())
        if not math.isfinite(loss):
            raise CopraError(
                f"step {step}: validation loss {loss:.4g}: the training has broken down. Lower "
                "training.learning_rate or raise training.warmup_steps."
            )
        found = {"validation_loss": loss}
        found |= {name: value for name, value in values.items() if name not in weights}
        if len(weights) > 1:
            found |= {f"validation_{name}": values[name] for name in weights}
        if self.selects_by == "accuracy":
            found["validation_accuracy"] = self.accuracy()
        value = found.get("validation_accuracy", -loss)
        better = self.progress.best_value is None or value > self.progress.best_value
        if self.training.select == "last" and last:
            self.progress.best_step, self.progress.best_value = step, value
        elif self.training.select != "last" and better:
            self.progress.best_step, self.progress.best_value = step, value
            with replacing(self.state / BEST) as temporary:
                save_model(thinker, str(temporary))
        return found
