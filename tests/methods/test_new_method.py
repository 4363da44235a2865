"""A method that copra does not know takes one file and one line, and one more line for a part of its own."""

import importlib.util
import json
from typing import Annotated, Union

import pytest
import torch
from accelerate.state import AcceleratorState
from pydantic import Field, TypeAdapter
from references import MARKERS as IDS
from references import assert_same_loss, draw_rows, plain_cross_entropy, plain_hidden, surprise

from copra.data.sequences import GenerationSpec, Markers, TokenRow
from copra.data.tokenization import markers_of, pad_id, tokenize
from copra.generation.decode import decode
from copra.methods import METHODS
from copra.methods.reasoning_model import ReasoningModel
from copra.models import extra_modules
from copra.schema.training import Training
from copra.training.loop import Trainer

FILE = '''
"""Latents in the place of all steps but the last, and a guess at how much is to come."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from copra.models.hooks import gather_positions
from copra.data.sequences import IGNORED
from copra.methods.losses import LossTerm
from copra.methods.method import Layout, Method, Stage


class Guess(nn.Linear):
    """From a hidden state to a number."""

    def __init__(self, model):
        super().__init__(model.config.hidden_size, 1)


@dataclass(frozen=True)
class GuessError(LossTerm):
    """The squared error of the guess."""

    def normalizer(self, samples):
        return len(samples)

    def compute(self, reasoner, batch, outputs):
        states = gather_positions(outputs["hidden"], batch.read[:, 0])
        to_come = (batch.labels != IGNORED).sum(1)
        error = reasoner.extra_modules["guess"](states)[:, 0] - to_come
        return error.square().sum(), len(batch)


class LastStepStage(Stage):
    guessing: float

    def lay_out(self, row, markers, draw=None):
        layout = self.layouts[-1].model_copy(update={"skip": max(len(row.steps) - 1, 0)})
        return replace(layout.lay_out(row, markers), read=(len(row.question) - 1,))

    def extra_modules(self):
        return super().extra_modules() | {"guess": {}}

    def own_terms(self):
        return [*super().own_terms(), GuessError("guess", self.guessing)]


class LastStep(Method):
    """Write the last step and the answer."""

    stage_type: ClassVar[type[Stage]] = LastStepStage

    kind: Literal["last_step"]
    latents: int = Field(2, ge=1)
    guessing: float = Field(0.1, gt=0)

    def stages(self):
        layout = Layout(latents=self.latents, markers=True)
        return {0: LastStepStage(layouts=(layout,), guessing=self.guessing)}
'''

STEP = {"kind": "last_step", "training": {"steps": 1}}


@pytest.fixture
def last_step(tmp_path, monkeypatch):
    """The method from its file, known by the two lines."""
    path = tmp_path / "last_step.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("last_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "last_step", module.LastStep)
    monkeypatch.setitem(extra_modules.EXTRA_MODULES, "guess", module.Guess)
    return module


def a_step():
    """As a config's steps are read: the kind says which method it is."""
    steps = TypeAdapter(Annotated[Union[tuple(METHODS.values())], Field(discriminator="kind")])  # noqa: UP007
    return steps.validate_python(STEP)


def test_a_config_finds_it_by_its_kind_and_a_manifest_its_stage(last_step):
    method = a_step()
    assert type(method) is last_step.LastStep
    stage = method.stages()[0]
    again = METHODS["last_step"].stage_type.model_validate(json.loads(json.dumps(stage.canonical())))
    assert again == stage


def test_it_lays_out_as_its_file_says(last_step):
    stage, markers = a_step().stages()[0], Markers(start=7, latent=8, end=9)
    row = TokenRow("row", question=[1, 2], steps=[[11, 12], [21], [31, 32]], answer=[91, 92])
    sample = stage.lay_out(row, markers)
    assert sample.tokens == [1, 2, 7, 8, 8, 9, 31, 32, 91, 92]
    assert sample.labels == [-100] * 6 + [31, 32, 91, 92]
    assert sample.read == (1,)
    assert stage.decoding(markers) == GenerationSpec((7,), 2, "hidden", 8, (9,))


def test_its_loss_has_a_term_of_its_own(last_step, any_model):
    """Rows are padded on the left, so that what is read is in other columns."""
    stage = a_step().stages()[0]
    reasoner = ReasoningModel(any_model, extra_modules.make_extra_modules(any_model, stage.extra_modules()))
    samples = [stage.lay_out(row, IDS) for row in draw_rows((5, (3, 2, 4)), (2, (2,)), (7, ()))]
    guess = reasoner.extra_modules["guess"]
    answers, guesses = 0.0, 0.0
    # The last step's tokens and three of the answer.
    for sample, to_come in zip(samples, (4 + 3, 2 + 3, 3), strict=True):
        hidden = plain_hidden(any_model, sample)
        answers += plain_cross_entropy(any_model, hidden, sample.labels)
        guesses += (guess.weight[0] @ hidden[sample.first_latent - 2] + guess.bias[0] - to_come).square()
    expected = {"cross_entropy": (1.0, answers, 7 + 5 + 3), "guess": (0.1, guesses, 3)}
    reached = assert_same_loss(stage, reasoner, samples, expected)
    assert {"extra_modules.guess.weight", "extra_modules.guess.bias"} < set(reached)


@pytest.fixture
def trained(last_step, word_base, rows, tmp_path):
    """A trainer that has run, and the tokens of its rows."""
    base = word_base("llama")
    stage, tokens = a_step().stages()[0], tokenize(base.tokenizer, rows)
    torch.manual_seed(0)
    trainer = Trainer(
        model=base.model,
        stage=stage,
        training=Training(
            steps=150,
            batch_size=18,
            learning_rate=1e-2,
            num_validations=1,
            schedule="cosine",
            select_best_by="last",
        ),
        rows=tokens[:18],
        validation=tokens[18:],
        markers=markers_of(base.tokenizer),
        pad=pad_id(base.tokenizer),
        seed=0,
        state=tmp_path / "state",
        accuracy=lambda: 0.0,
        extra_modules=extra_modules.make_extra_modules(base.model, stage.extra_modules()),
    )
    trainer.run()
    yield trainer, base.tokenizer
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_it_trains_and_its_decoding_answers(trained):
    trainer, tokenizer = trained
    log = [json.loads(line) for line in trainer.log_text().splitlines()]
    for term in ("loss", "cross_entropy", "guess"):
        assert log[-1][term] < 0.5 * log[0][term], term
    assert log[-1]["loss"] == pytest.approx(log[-1]["cross_entropy"] + 0.1 * log[-1]["guess"], rel=1e-5)
    model, markers = trainer.model.eval(), trainer.markers
    answers = decode(
        model,
        [row.question for row in trainer.rows],
        trainer.stage.decoding(markers),
        stop=tokenizer.eos_token_id,
        pad=trainer.pad,
        max_new_tokens=10,
        batch_size=5,
    )
    for row, answer in zip(trainer.rows, answers, strict=True):
        assert answer.tokens == greedy(model, row.question, markers, tokenizer.eos_token_id)
        # Such as 5 + 4 = 9, line break, ### 9, end: the form at least is learned.
        assert len(answer.tokens) == len(row.steps[-1]) + len(row.answer)
        assert (answer.tokens[1], answer.tokens[5:7]) == (row.steps[-1][1], [row.steps[-1][5], row.answer[0]])


@torch.no_grad()
def greedy(model, question, markers, stop):
    """The most likely tokens after the question and two latents, the whole sequence anew for each."""
    embedding = model.get_input_embeddings().weight

    def last(vectors):
        return model.base_model(inputs_embeds=torch.stack(vectors)[None], use_cache=False).last_hidden_state[
            0, -1
        ]

    vectors = [embedding[token] for token in [*question, markers.start]]
    for _ in range(2):
        vectors.append(last(vectors))
    vectors.append(embedding[markers.end])
    found = []
    while len(found) < 10 and (not found or found[-1] != stop):
        state = last(vectors)
        found.append(min(range(len(embedding)), key=lambda token: surprise(model, state, token)))
        vectors.append(embedding[found[-1]])
    return found
