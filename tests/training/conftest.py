import pytest
import torch
from accelerate.state import AcceleratorState
from torch.optim.optimizer import register_optimizer_step_pre_hook

from copra.models.tokens import markers_of, pad_id, tokenise
from copra.reasoning import Coconut, Cot
from copra.training.loop import Trainer
from copra.training.settings import Training

STEP = {"steps": 1}
STAGES = {
    "cot": Cot(kind="cot", training=STEP).stages()[0],
    "coconut": Coconut(kind="coconut", training=STEP, max_latent_stage=2).stages()[1],
    # Rows of an epoch are drawn from the stages 0, 1 and 2: none, one or two latents in one batch.
    "mixed": Coconut(kind="coconut", training=STEP, stage_mixing=True, max_latent_stage=2).stages()[2],
}


def no_accuracy() -> float:
    raise AssertionError("accuracy was asked for")


@pytest.fixture(autouse=True)
def _own_accelerator():
    """Accelerate keeps its first precision for the life of a process; a test is a process of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def make_trainer(word_base, rows, tmp_path):
    """Makes a trainer of a tiny model: 18 rows to train on and 6 for validation, 10 steps of 4 rows."""

    def make(
        stage: str = "cot",
        *,
        architecture: str = "llama",
        dropout: float = 0.0,
        state: str = "state",
        seed: int = 0,
        accuracy=no_accuracy,
        precision: str = "float32",
        save_every: float = 300,
        **training,
    ) -> Trainer:
        base = word_base(architecture, dropout=dropout)
        tokens = tokenise(base.tokenizer, rows)
        defaults = {"batch_size": 4, "learning_rate": 3e-3, "validations": 2, "select": "last"}
        if "epochs" not in training:
            defaults["steps"] = 10
        return Trainer(
            model=base.model,
            stage=STAGES[stage],
            training=Training(**{**defaults, **training}),
            rows=tokens[:18],
            validation=tokens[18:],
            markers=markers_of(base.tokenizer),
            pad=pad_id(base.tokenizer),
            seed=seed,
            state=tmp_path / state,
            accuracy=accuracy,
            precision=precision,
            save_every_seconds=save_every,
        )

    return make


@pytest.fixture
def gradients():
    """The gradients (after clipping) of every optimizer step that is taken, filled as training goes."""
    seen: list[list[torch.Tensor]] = []

    def look(optimizer, *_):
        seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()
