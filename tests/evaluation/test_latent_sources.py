"""Latents of other sources: which question gets whose, and a hand-made model that answers by its latents."""

from itertools import permutations

import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copra.data.sequences import GenerationSpec
from copra.evaluation.latent_sources import answers_by_source, other_questions, replaced, summary
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.schema.latents import LATENT_SOURCES
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from helpers.manifests import provenance


def differing(golds, others) -> int:
    return sum(golds[i] != golds[other] for i, other in enumerate(others))


@given(st.lists(st.sampled_from("12345"), min_size=2, max_size=60))
def test_each_question_gets_one_other_and_a_different_answer_where_possible(golds):
    others = other_questions(golds, "number")
    assert sorted(others) == list(range(len(golds)))
    assert all(i != other for i, other in enumerate(others))
    assert others == other_questions(golds, "number")
    most = max(map(golds.count, golds))
    assert differing(golds, others) == min(len(golds), 2 * (len(golds) - most))


@pytest.mark.parametrize("golds", ["112", "1112", "11123", "12345", "112233", "11111", "111222", "1111234"])
def test_no_permutation_without_a_fixed_point_has_more_different_answers(golds):
    best = max(
        differing(golds, each)
        for each in permutations(range(len(golds)))
        if all(i != other for i, other in enumerate(each))
    )
    assert differing(golds, other_questions(list(golds), "number")) == best


def test_the_permutation_is_the_same_in_each_version():
    """And not simply the next question of the split."""
    assert other_questions(list("1234567"), "number") == [3, 6, 4, 5, 1, 2, 0]


def test_answers_are_told_apart_as_in_their_comparison():
    assert differing([1, 1, 2, 2], other_questions(["1,000", "1000.0", "7", "$7"], "number")) == 4
    assert differing([1, 1, 2, 2], other_questions(["Yes.", "yes", "no", "No"], "text")) == 4


def test_a_single_question_has_no_other():
    with pytest.raises(CopraError, match=r"^evaluation.latents_from: 'other' .* Evaluate more questions"):
        other_questions(["3"], "number")


def test_replaced_inputs_are_those_of_another_question_their_mean_or_zeros():
    own = torch.arange(24, dtype=torch.bfloat16).view(4, 2, 3)
    assert torch.equal(replaced(own, "other", [2, 3, 1, 0]), own[[2, 3, 1, 0]])
    mean = replaced(own, "mean", [])
    assert mean.dtype == torch.bfloat16
    assert mean.tolist() == [[[9, 10, 11], [12, 13, 14]]] * 4
    assert replaced(own, "zeros", []).tolist() == [[[0] * 3] * 2] * 4


DIGITS = "12345"


@pytest.fixture
def checkpoint(tmp_path, word_base):
    """Answers a question that is one digit by this digit, which its first latent reads.

    Every position adds a twentieth of the mean over all positions up to it, so a latent holds more of a digit
    than a position that reads the question itself. All embeddings are orthogonal.
    """
    made = word_base(layers=1, heads=1, kv_heads=1, hidden_size=96, tie_word_embeddings=False)
    tokenizer, model = made.tokenizer, made.model
    tokenizer.add_tokens([f"### {digit}" for digit in DIGITS])
    model.resize_token_embeddings(len(tokenizer))
    digits = tokenizer.convert_tokens_to_ids(list(DIGITS))
    said = tokenizer.convert_tokens_to_ids([f"### {digit}" for digit in DIGITS])
    layer = model.model.layers[0]
    with torch.no_grad():
        for parameter in (model.lm_head.weight, layer.self_attn.q_proj.weight, layer.mlp.down_proj.weight):
            parameter.zero_()
        embedding = model.model.embed_tokens.weight
        embedding.copy_(torch.eye(*embedding.shape))
        layer.self_attn.v_proj.weight.copy_(torch.eye(96))
        layer.self_attn.o_proj.weight.copy_(torch.eye(96) / 20)
        model.lm_head.weight[said] = embedding[digits]
        model.lm_head.weight[tokenizer.eos_token_id] = embedding[said].sum(dim=0)
    latent = tokenizer.convert_tokens_to_ids("<|latent|>")
    decoding = GenerationSpec((), 2, "hidden", latent, ())
    save_checkpoint(tmp_path / "model", model, tokenizer, provenance(decoding=decoding))
    return load_checkpoint(tmp_path / "model")


def answered(checkpoint, rows, sources=LATENT_SOURCES, batch_size=2):
    return answers_by_source(
        checkpoint,
        rows,
        sources,
        max_new_tokens=3,
        answers="number",
        batch_size=batch_size,
        answer_cache=lambda _, answer: answer(),
    )


def test_a_model_that_answers_by_its_latents_answers_the_other_question(checkpoint):
    """In whichever batches. Without a digit in its latents it answers by the question that they attend to."""
    rows = [Row(digit, (), digit) for digit in DIGITS]
    others = other_questions(list(DIGITS), "number")
    for batch_size in (1, 2, 5):
        found = answered(checkpoint, rows, batch_size=batch_size)
        assert list(found) == list(LATENT_SOURCES)
        for source in ("own", "mean", "zeros", "drop_last"):
            assert found[source]["extracted"].tolist() == list(DIGITS)
        assert found["other"]["extracted"].tolist() == [DIGITS[i] for i in others]
    own, other = summary("own", found, "number"), summary("other", found, "number")
    assert (own["correct"], own["n"], own["changed"]) == (5, 5, 0)
    assert own["n_other"] is own["other_gold"] is None
    assert (other["correct"], other["n"], other["changed"]) == (0, 5, 5)
    assert (other["n_other"], other["other_gold"]) == (5, 1.0)
    assert other["is_correct"] == [False] * 5
    assert own["low"] < own["accuracy"] == own["high"] == 1


def test_where_all_answers_are_equal_none_is_that_of_the_other_question(checkpoint):
    rows = [Row(question, (), "1") for question in ("1", "1 ?", "? 1")]
    found = answered(checkpoint, rows, ["own", "other"])
    assert summary("other", found, "number")["n_other"] == 0
    assert summary("other", found, "number")["other_gold"] is None


def test_one_question_has_all_sources_but_another(checkpoint):
    rows = [Row("3", (), "3")]
    found = answered(checkpoint, rows, ["own", "mean", "zeros", "drop_last"])
    # The mean over one question is its own.
    assert {source: table["extracted"].item() for source, table in found.items()} == dict.fromkeys(found, "3")
    with pytest.raises(CopraError, match="another question"):
        answered(checkpoint, rows)


def table(*answers, golds="1233", others="2111") -> pandas.DataFrame:
    values = {"gold": list(golds), "extracted": list(answers), "other_gold": list(others)}
    return pandas.DataFrame(values | {"correct": [a == gold for a, gold in zip(answers, golds, strict=True)]})


def test_answers_that_are_missing_or_written_otherwise():
    found = {"own": table("1", None, "4", "3"), "other": table("1.0", None, "1", None)}
    assert summary("own", found, "number")["changed"] == 0
    values = summary("other", found, "number")
    # 1.0 is 1, no answer is no answer, and 4 became 1 and 3 none.
    assert values["changed"] == 2
    assert (values["n_other"], values["other_gold"]) == (4, 1 / 4)
    equal = {"own": found["own"], "other": table("1", "2", "1", "3", others="1113")}
    values = summary("other", equal, "number")
    # The first and the last question got latents of a question with their own answer.
    assert (values["n_other"], values["other_gold"]) == (2, 1 / 2)
