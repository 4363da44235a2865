"""Samples written out by hand, and losses against loops over the blocks.

Question 1 2, steps [11, 12] [21], answer 91 92.
"""

import json

import pytest
import torch
from references import MARKERS as IDS
from references import (
    PAD,
    another,
    assert_same_loss,
    draw_rows,
    layer_norm,
    plain_cross_entropy,
    through_blocks,
)

from copra.data.batch import collate
from copra.data.sequences import IGNORED, GenerationSpec, Markers, Sample, TokenRow
from copra.methods import IcotKd
from copra.methods.icot_kd import teacher_states
from copra.methods.reasoning_model import ReasoningModel
from copra.models.extra_modules import make_extra_modules
from helpers.manifests import reread

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21]], answer=[91, 92])
BARE = TokenRow("bare", question=[4], steps=[], answer=[94])
_ = -100
# Chains of 9, 2, 0 and 7 tokens.
ROWS = ((5, (3, 2, 4)), (2, (2,)), (7, ()), (3, (1, 6)))


def icot_kd(**settings):
    return IcotKd(kind="icot_kd", training={"steps": 1}, **settings)


STAGES = icot_kd().stages()


# The student's tokens, its labels, what it reads; the teacher's tokens and what is read of it.
WORKED = {
    "row": (ROW, [1, 2, 91, 92], [_, _, 91, 92], (1,), [1, 2, 11, 12, 21], (1, 4)),
    "bare": (BARE, [4, 94], [_, 94], (0,), [4], (0, 0)),
}


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", WORKED)
def test_student_and_emulator_see_the_question_and_the_teacher_its_chain(name, number):
    row, tokens, labels, read, chain, ends = WORKED[name]
    sample = STAGES[number].lay_out(row, MARKERS)
    assert (sample.tokens, sample.labels, sample.read) == (tokens, labels, read)
    assert (sample.id, sample.first_latent, sample.n_latents) == (row.id, len(row.question), 0)
    if number == 2:
        assert sample.teacher is None
    else:
        assert (sample.teacher.tokens, sample.teacher.read) == (chain, ends)
        assert set(sample.teacher.labels) == {_}


def test_three_trainings_and_what_each_of_them_trains():
    assert list(STAGES) == [0, 1, 2]
    assert [stage.needs_teacher for stage in STAGES.values()] == [True, True, False]
    assert [stage.answers for stage in STAGES.values()] == [False, True, True]
    assert [stage.frozen() for stage in STAGES.values()] == [("emulator",), ("model", "mind_reader"), ()]
    assert [list(stage.loss_weights()) for stage in STAGES.values()] == [
        ["cross_entropy"],
        ["emulation"],
        ["cross_entropy"],
    ]
    for stage in STAGES.values():
        assert stage.extra_modules() == {"mind_reader": {}, "emulator": {}}
        assert (stage.dropout, stage.draws, stage.is_scheduled) == (False, False, False)
    assert IcotKd.unprunable == "whose parts belong to single layers"


def test_answers_come_from_the_emulator_once_there_is_one():
    assert STAGES[0].decoding(MARKERS) is None
    for number in (1, 2):
        decoding = STAGES[number].decoding(MARKERS)
        assert decoding == GenerationSpec((), 0, "hidden", 8, (), emulated=True)
        assert decoding.extra_modules == ("mind_reader", "emulator")
        assert not decoding.has_recurrent_latents
        assert reread(decoding) == decoding


def test_stages_survive_their_json():
    for stage in STAGES.values():
        assert type(stage).model_validate(json.loads(json.dumps(stage.canonical()))) == stage


def test_a_teacher_can_be_named():
    assert icot_kd(teacher="llama+cot").teacher == "llama+cot"
    assert icot_kd(teacher="llama+cot").stages() == STAGES


# Question and chain lengths, and by hand: from the question's last place to the chain's last one in equal
# extra_modules, a half rounded to the even place.
@pytest.mark.parametrize(
    ("layers", "question", "chain", "places"),
    [
        (3, 4, 6, [3, 6, 9]),
        (3, 4, 5, [3, 6, 8]),
        (3, 4, 3, [3, 4, 6]),
        (3, 4, 1, [3, 4, 4]),
        (3, 4, 0, [3, 3, 3]),
        (5, 3, 8, [2, 4, 6, 8, 10]),
        (5, 3, 6, [2, 4, 5, 6, 8]),
        (5, 2, 3, [1, 2, 2, 3, 4]),
        (4, 1, 10, [0, 3, 7, 10]),
        (1, 3, 6, [2]),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layer_l_reads_the_lth_of_evenly_spread_places(
    word_base, architecture, layers, question, chain, places
):
    """Beside a longer row, so that there is padding."""
    teacher = word_base(architecture, layers=layers).model.eval().double()
    row, longer = draw_rows((question, (chain,)), (6, (9,)), vocabulary=20)
    batch = collate([STAGES[0].lay_out(each, MARKERS) for each in (longer, row)], PAD)
    found = teacher_states(ReasoningModel(teacher, teacher=ReasoningModel(teacher)), batch.teacher)
    assert found.shape == (layers, 2, 32)
    tokens = torch.tensor([row.question + row.steps[0]])
    states = teacher.base_model(input_ids=tokens, output_hidden_states=True).hidden_states
    for layer, place in enumerate(places):
        expected = layer_norm(states[layer][0, place])
        assert torch.allclose(found[layer, 1], expected, rtol=0, atol=1e-6)


def test_what_is_read_is_normalized(any_model):
    batch = collate([STAGES[0].lay_out(row, IDS) for row in draw_rows(*ROWS)], PAD)
    found = teacher_states(
        ReasoningModel(any_model, teacher=ReasoningModel(another(any_model))), batch.teacher
    )
    assert torch.allclose(found.mean(-1), found.new_zeros(()), atol=1e-12)
    assert torch.allclose(found.var(-1, correction=0), found.new_ones(()), atol=1e-3)
    assert not found.requires_grad


@pytest.fixture(params=["llama", "gpt2", "copra_llama"])
def reasoner(request, make_model):
    """A student, an emulator of another origin, and a teacher of a third one.

    There are five layers: the emulator attends to more than one layer below from its third layer on, and of
    its last layer nothing is used but the prediction.
    """
    model = make_model(request.param, layers=5)
    student = another(model)
    return ReasoningModel(
        student, make_extra_modules(model, STAGES[0].extra_modules()), ReasoningModel(another(student))
    )


@pytest.fixture
def samples():
    return [[stage.lay_out(row, IDS) for row in draw_rows(*ROWS)] for stage in STAGES.values()]


def embedded(model, tokens):
    return [model.get_input_embeddings().weight[token] for token in tokens]


def network(layers, vector):
    """W2 relu(W1 x + b1) + b2."""
    first, _, second = layers
    return second.weight @ (first.weight @ vector + first.bias).clamp(min=0) + second.bias


def plain_states(reasoner, sample: Sample) -> list[torch.Tensor]:
    """z_l of one row: the inputs of the teacher's blocks, at places by Python's own rounding."""
    tokens = torch.tensor([sample.teacher.tokens])
    states = reasoner.teacher.model.base_model(input_ids=tokens, output_hidden_states=True).hidden_states
    first, last = len(sample.tokens) - 3 - 1, len(sample.teacher.tokens) - 1
    return [layer_norm(states[i][0, round(first + i * (last - first) / 4)].detach()) for i in range(5)]


def plain_student(reasoner, sample: Sample, states) -> torch.Tensor:
    """Sum of -log p(token) over the answer's three tokens: before block l the state at the question's last
    place is what the mind reader makes of state l."""
    t = len(sample.tokens) - 3 - 1

    def change(index, hidden):
        thought = network(reasoner.extra_modules["mind_reader"].layers[index], states[index])
        return torch.cat([hidden[:t], thought[None], hidden[t + 1 :]])

    hidden = through_blocks(reasoner.model.base_model, embedded(reasoner.model, sample.tokens), change)[-1]
    return plain_cross_entropy(reasoner.model, hidden, sample.labels)


def plain_emulator(emulator, question: list[int]) -> list[torch.Tensor]:
    """f_l of one row, of which nothing but the question is read; the LSTM gate by gate."""
    found, keys = [], []
    cell, d = emulator.cell, emulator.mixture.shape[0]
    context = output = memory = torch.zeros(d, dtype=torch.float64)

    def change(index, hidden):
        nonlocal context, output, memory
        found.append(network(emulator.networks[index], torch.cat([hidden[-1], emulator.mixture])))
        gates = cell.weight_ih @ (found[-1] + context) + cell.bias_ih
        gates = gates + cell.weight_hh @ output + cell.bias_hh
        entered, kept, candidate, shown = gates.chunk(4)
        memory = kept.sigmoid() * memory + entered.sigmoid() * candidate.tanh()
        output = shown.sigmoid() * memory.tanh()
        context = torch.zeros(d, dtype=torch.float64)
        if keys:
            query = emulator.query.weight @ output + emulator.query.bias
            weights = torch.stack([(key @ query).exp() for key in keys])
            weights = weights / weights.sum()
            context = sum(weight * key for weight, key in zip(weights, keys, strict=True))
        keys.append(emulator.key.weight @ output + emulator.key.bias)
        replaced = emulator.output.weight @ torch.cat([output, context]) + emulator.output.bias
        return torch.cat([hidden[:-1], replaced[None]])

    through_blocks(emulator.body, embedded(emulator.body, question), change)
    return found


BODY = "extra_modules.emulator.body."
LAST_BLOCK = {"llama": BODY + "layers.4", "copra_llama": BODY + "layers.4", "gpt2": BODY + "h.4"}
FINAL_NORM = {"llama": BODY + "norm", "copra_llama": BODY + "norm", "gpt2": BODY + "ln_f"}


def part_names(reasoner, part: str) -> set[str]:
    return {name for name, _ in reasoner.named_parameters() if name.startswith(part)}


def unused(reasoner) -> set[str]:
    """Weights of the emulator behind its last prediction: its last block and its final norm."""
    kind = reasoner.model.config.model_type
    names = part_names(reasoner, LAST_BLOCK[kind]) | part_names(reasoner, FINAL_NORM[kind])
    assert len(names) > 9
    return names


def test_the_student_reads_the_teachers_mind(reasoner, samples):
    losses = [plain_student(reasoner, sample, plain_states(reasoner, sample)) for sample in samples[0]]
    reached = assert_same_loss(STAGES[0], reasoner, samples[0], {"cross_entropy": (1.0, sum(losses), 4 * 3)})
    assert set(reached) == part_names(reasoner, "model") | part_names(reasoner, "extra_modules.mind_reader")
    assert all(parameter.grad is None for parameter in reasoner.teacher.parameters())


def test_the_emulator_predicts_the_teachers_states(reasoner, samples):
    losses = []
    for sample in samples[1]:
        predicted = plain_emulator(reasoner.extra_modules["emulator"], sample.tokens[:-3])
        states = plain_states(reasoner, sample)
        losses += [0.5 * (p - z).square().sum() for p, z in zip(predicted, states, strict=True)]
    reached = assert_same_loss(STAGES[1], reasoner, samples[1], {"emulation": (1.0, sum(losses), 4)})
    assert set(reached) == part_names(reasoner, "extra_modules.emulator") - unused(reasoner)
    assert all(parameter.grad is None for parameter in reasoner.teacher.parameters())


def test_both_coupled_answer_without_a_teacher(reasoner, samples):
    reasoner = ReasoningModel(reasoner.model, reasoner.extra_modules)
    losses = [
        plain_student(
            reasoner, sample, plain_emulator(reasoner.extra_modules["emulator"], sample.tokens[:-3])
        )
        for sample in samples[2]
    ]
    reached = assert_same_loss(STAGES[2], reasoner, samples[2], {"cross_entropy": (1.0, sum(losses), 4 * 3)})
    assert set(reached) == part_names(reasoner, "") - unused(reasoner)


def test_the_emulator_reads_no_further_than_the_question(reasoner, samples):
    """Other answers, other chains: the same predictions."""
    changed = []
    for sample in samples[2]:
        question = sample.tokens[:-3]
        changed.append(
            Sample(sample.id, [*question, 1, 2, 3], [IGNORED] * len(sample.tokens), 0, 0, sample.read)
        )
    columns = collate(samples[2], PAD).read[:, 0]
    predicted = [
        reasoner.extra_modules["emulator"](batch.tokens, batch.mask, batch.positions, columns)
        for batch in (collate(samples[2], PAD), collate(changed, PAD))
    ]
    assert torch.equal(*predicted)


def test_the_emulator_is_a_model_of_its_own(any_model):
    """It starts from the model's weights, and training one leaves the other alone."""
    reasoner = ReasoningModel(any_model, make_extra_modules(any_model, STAGES[2].extra_modules()))
    body = dict(reasoner.extra_modules["emulator"].body.named_parameters())
    for name, parameter in any_model.base_model.named_parameters():
        assert torch.equal(parameter, body[name])
        assert parameter.data_ptr() != body[name].data_ptr()
