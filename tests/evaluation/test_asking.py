"""Questions of one's own are answered as those of a task are; the Python API that the pages show."""

import subprocess
import sys
from dataclasses import replace

import pytest

import copra
from copra.evaluation.accuracy import predictions
from copra.evaluation.asking import LONGEST
from copra.generation.answering import GenerationOptions
from copra.generation.logit_lens import logit_lens
from copra.generation.prompts import prompts_of
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.utils.errors import CopraError
from helpers.manifests import provenance
from helpers.thinkers import make_thinker


@pytest.fixture
def folder(word_base, tmp_path):
    """A checkpoint with three latents and random weights that are large enough to say something."""
    base = word_base()
    spec = make_thinker(base, 3)
    save_checkpoint(tmp_path / "model", base.model, base.tokenizer, provenance(decoding=spec))
    return tmp_path / "model"


def test_replies_are_the_answers_of_evaluations(folder, rows):
    model = copra.load(folder)
    asked = rows[:7]
    expected = predictions(load_checkpoint(folder), model.decoding, asked, 9, "number")
    replies = model.generate([row.question for row in asked], 9, batch_size=3)
    assert [reply.text for reply in replies] == expected["generated"].tolist()
    assert [reply.answer for reply in replies] == expected["extracted"].tolist()
    assert [reply.tokens for reply in replies] == expected["n_generated"].tolist()
    assert [reply.flops for reply in replies] == expected["flops"].tolist()
    assert {reply.latents for reply in replies} == {3}
    assert all(reply.lens == () and reply.seconds > 0 for reply in replies)
    assert model.predictions(asked, 9).equals(expected)
    assert model.generate([]) == []


def test_the_lens_shows_each_latent_and_changes_no_answer(folder, rows):
    model, question = copra.load(folder), rows[0].question
    reply = model.answer(question, 9, lens=2)
    assert reply.text == model.answer(question, 9).text
    prompts = prompts_of(model.checkpoint.tokenizer, rows[:1], model.decoding).prompts
    (readout,) = logit_lens(model.checkpoint, prompts, model.decoding, GenerationOptions(9, 1), 2)
    assert [[share for _, share in likely] for likely in reply.lens] == readout.probabilities
    names = [[model.checkpoint.tokenizer.decode([token]) for token in likely] for likely in readout.tokens]
    assert [[name for name, _ in likely] for likely in reply.lens] == names


def test_steps_are_the_lines_before_the_answer(folder, monkeypatch):
    model = copra.load(folder)
    text = "2 + 3 = 5 \n 5 + 4 = 9 \n # # # 9"
    monkeypatch.setattr(type(model.checkpoint.tokenizer), "decode", lambda *_, **__: text.replace("# ", "#"))
    reply = model.answer("2 and 3 and 4 ?", 9)
    assert (reply.steps, reply.answer) == (("2 + 3 = 5", "5 + 4 = 9"), "9")


def test_questions_are_read_as_those_of_tasks(folder, rows):
    """In one line, as `copra.tasks` writes them."""
    model = copra.load(folder)
    assert (
        model.answer(f"  {rows[0].question.replace(' ', chr(10))} ", 9).text
        == model.answer(rows[0].question, 9).text
    )


def test_without_a_limit_an_answer_is_as_long_as_fits(folder, rows):
    model = copra.load(folder)
    tokens = len(model.checkpoint.tokenizer(rows[0].question + "\n")["input_ids"])
    # 64 positions, three latents and their two markers; the last token is not read.
    room = 64 - tokens - 5 + 1
    assert room < LONGEST
    assert model.answer(rows[0].question).tokens <= room
    with pytest.raises(CopraError, match=f"leaves {room} for the answer"):
        model.answer(rows[0].question, room + 1)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (" \n", "the question is empty"),
        ("1 and zebra or emu ?", "lacks 'zebra', 'or', 'emu'; ask with the words of that task"),
    ],
)
def test_questions_that_cannot_be_asked_say_why(folder, question, message):
    with pytest.raises(CopraError, match=message):
        copra.load(folder).answer(question)


def test_models_that_cannot_answer_or_have_no_latents_say_so(folder, word_base, tmp_path):
    base = word_base()
    save_checkpoint(tmp_path / "base", base.model, base.tokenizer, provenance())
    with pytest.raises(CopraError, match=r"base: this model was never trained to answer"):
        copra.load(tmp_path / "base")
    plain = replace(copra.load(folder).decoding, latents=0, prefix_ids=(), suffix_ids=())
    save_checkpoint(tmp_path / "plain", base.model, base.tokenizer, provenance(decoding=plain))
    with pytest.raises(CopraError, match="no latents that are hidden states"):
        copra.load(tmp_path / "plain").answer("1 and 2 ?", lens=3)


def test_the_package_is_imported_without_torch():
    command = "import copra, sys; print('torch' in sys.modules); copra.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        copra.lode  # noqa: B018
