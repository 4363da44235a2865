import pytest
import torch
from accelerate.state import AcceleratorState
from torch.optim.optimizer import register_optimizer_step_pre_hook

from copra.data.tokenization import markers_of, pad_id, tokenize
from copra.methods import Coconut, Codi, Cot, IcotKd, IcotSi, Looped
from copra.methods.reasoning_model import ReasoningModel
from copra.models.extra_modules import make_extra_modules
from copra.models.looping import loop_layers
from copra.schema.training import Training
from copra.training.loop import Trainer
from copra.training.saves import CheckpointSchedule

STEP = {"steps": 1}
TWO = {"training": STEP, "max_latent_stage": 2}
CODI = {"kind": "codi", "training": STEP, "latents": 2}
BESIDE = {"weight": 2.0, "temperature": 2.0, "task_weight": 0.5}
STAGES = {
    "cot": Cot(kind="cot", training=STEP).stages()[0],
    "coconut": Coconut(kind="coconut", **TWO).stages()[1],
    "looped": Looped(kind="looped", training=STEP, loop={"layers": [1, 1], "times": 3}).stages()[0],
    # Rows of an epoch are drawn from the stages 0, 1 and 2: none, one or two latents in one batch.
    "mixed": Coconut(kind="coconut", **TWO, stage_mixing=True).stages()[2],
    "projected": Coconut(kind="coconut", **TWO, latent_input="projected").stages()[1],
    "explained": Coconut(kind="coconut", **TWO, auxiliary_decoder={"layers": 1}).stages()[2],
    "codi": Codi(**CODI).stages()[0],
    "codi alone": Codi(**CODI, distillation=0).stages()[0],
    # From 5 to 9 tokens of the chain go, one more after each fifth of the training.
    "removing": IcotSi(kind="icot_si", training=STEP, tokens_per_stage=5, smoothing=None).stages()[1],
    "removing smoothly": IcotSi(kind="icot_si", training=STEP, tokens_per_stage=4, smoothing=0.7).stages()[0],
    # All of the chain is out.
    "removed": IcotSi(kind="icot_si", training=STEP, tokens_per_stage=39, smoothing=None).stages()[1],
    # With a teacher's predictions, alone and beside the own loss.
    "healed": Cot(kind="cot", training=STEP, distil={}).resolved_stages()[0],
    "healed loop": Looped(kind="looped", training=STEP, distil=BESIDE).resolved_stages()[0],
    "healed latents": Coconut(
        kind="coconut", **TWO, latent_input="projected", distil=BESIDE
    ).resolved_stages()[1],
    "healed removal": IcotSi(
        kind="icot_si", training=STEP, tokens_per_stage=5, smoothing=None, distil=BESIDE
    ).resolved_stages()[1],
    **{f"kd.{number}": stage for number, stage in IcotKd(kind="icot_kd", training=STEP).stages().items()},
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
    """Makes a trainer of a tiny model: 18 rows to train on and 6 for validation, 10 steps of 4 rows.

    It has the extra modules that its stage wants, and where that needs a teacher, another model of the same
    kind, but of another shape where the stage does not read its states.
    """

    def make(
        stage: str = "cot",
        *,
        architecture: str = "llama",
        dropout: float = 0.0,
        tied: bool = True,
        state: str = "state",
        seed: int = 0,
        accuracy=no_accuracy,
        precision: str = "float32",
        save_every: float = 300,
        save_steps: int | None = None,
        sharding: bool = False,
        **training,
    ) -> Trainer:
        spec, stage = {"dropout": dropout, "tie_word_embeddings": tied}, STAGES[stage]
        teacher = None
        if stage.needs_teacher:
            shape = {} if stage.reads_minds else {"layers": 3, "hidden_size": 40}
            model = word_base(architecture, seed=7, **spec, **shape).model
            teacher = ReasoningModel(model, make_extra_modules(model, stage.extra_modules()))
        base = word_base(architecture, **spec)
        loop_layers(base.model, stage.loop)
        torch.manual_seed(2)
        tokens = tokenize(base.tokenizer, rows)
        defaults = {"batch_size": 4, "learning_rate": 3e-3, "num_validations": 2, "select_best_by": "last"}
        if "epochs" not in training:
            defaults["steps"] = 10
        return Trainer(
            model=base.model,
            stage=stage,
            training=Training(**{**defaults, **training}),
            rows=tokens[:18],
            validation=tokens[18:],
            markers=markers_of(base.tokenizer),
            pad=pad_id(base.tokenizer),
            seed=seed,
            state=tmp_path / state,
            accuracy=accuracy,
            precision=precision,
            saves=CheckpointSchedule(save_every, save_steps),
            sharding=sharding,
            extra_modules=make_extra_modules(base.model, stage.extra_modules()),
            teacher=teacher,
        )

    return make


@pytest.fixture
def gradients():
    """The gradients (after clipping) of every optimizer step that changes weights, filled as training goes.

    Of what the loss does not reach there are none.
    """
    seen: list[list[torch.Tensor]] = []

    def look(optimizer, *_):
        if getattr(optimizer, "found_inf", False):
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([p.grad.clone() for p in parameters if p.grad is not None])

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


@pytest.fixture
def place(tmp_path, rows, word_base):
    """A folder with the data and an untrained base."""

    from copra.models.checkpoint import save_checkpoint
    from copra.tasks.prepare import prepare
    from copra.tasks.task import Task
    from helpers.manifests import provenance

    class Sums(Task):
        kind: str = "sums"

        def rows(self):
            yield from (("train", row) for row in rows[:16])
            yield from (("valid", row) for row in rows[16:20])
            yield from (("test", row) for row in rows[20:])

    prepare(Sums(), tmp_path / "data")
    made = word_base()
    save_checkpoint(tmp_path / "tiny", made.model, made.tokenizer, provenance())
    return tmp_path
