"""Rows of tasks and sizes of models before they are made, against real tokenizers, models and plans."""

import json

import pytest

from copra.cost.flops import of_typical_answer
from copra.cost.parameters import matrix_parameters
from copra.data.tokenization import tokenize, typical_lengths
from copra.models.bases import make_base
from copra.models.shape import shape_of
from copra.plan.rows import preview_of, task_rows
from copra.plan.sizes import base_size, pruned_shapes, recorded_size
from copra.schema.base import Base, FromScratch
from copra.schema.pruning import Prune
from copra.schema.shape import LayerShape, ModelShape
from copra.tasks.gsm8k import Gsm8k
from copra.tasks.prepare import prepare
from copra.tasks.task import SPLITS
from copra.tasks.word_sums import WordSums
from copra.utils.errors import CopraError

SIZES = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16}
WORDS = Base(from_scratch=FromScratch(**SIZES))
HUB = Base(path="somebody/something")
SHAPE = ModelShape("llama", 32, 50, 3, (LayerShape(8, 4, 4, 64),) * 4)


def flops_of(shape):
    return of_typical_answer(shape, {"prompt": 10, "generated": 10}).total


def rows_of(name, task, base, checkpoint, results):
    return task_rows(name, task, preview_of(name, task, results), base, checkpoint)


@pytest.mark.parametrize("is_prepared", [True, False])
def test_tokens_and_sizes_are_those_of_the_base_that_will_be_made(tmp_path, is_prepared):
    task = WordSums(train=40, valid=12, test=12, min_steps=2, max_steps=4)
    if is_prepared:
        prepare(task, tmp_path / "data" / "sums")
    rows = {split: [row for each, row in task.rows() if each == split] for split in SPLITS}
    model, tokenizer = make_base(WORDS, rows["train"], 0)
    found = rows_of("sums", task, WORDS, None, tmp_path)
    for split in SPLITS:
        tokens = tokenize(tokenizer, rows[split])
        assert [row.question for row in found.rows[split]] == [row.question for row in tokens]
    assert found.sizes == {"train": 40, "valid": 12, "test": 12}
    assert found.typical() == typical_lengths(tokenizer, rows["valid"])
    size = base_size(WORDS, found.vocabulary)
    assert size.shape == shape_of(model.config.to_dict())
    # All but two norms of the layer and the last one.
    assert size.parameters == sum(weight.numel() for weight in model.parameters()) - 3 * 16


def test_the_tokenizer_of_a_made_base_is_its_own(tmp_path):
    task = WordSums(train=40, valid=12, test=12)
    _, tokenizer = make_base(Base(from_scratch=FromScratch(**SIZES, tokenizer="bpe", vocabulary=300)), [], 0)
    tokenizer.save_pretrained(tmp_path)
    found = rows_of("sums", task, HUB, tmp_path, tmp_path)
    rows = [row for split, row in task.rows() if split == "test"]
    assert found.rows["test"] == tokenize(tokenizer, rows)
    assert (found.assumed, found.vocabulary) == ([], None)
    assert rows_of("sums", task, HUB, None, tmp_path).assumed


def test_a_sample_of_many_rows_is_like_them(tmp_path):
    """Numbers of steps take turns, so that every third row has as many."""
    task = WordSums(train=3000, valid=12, test=12, min_steps=2, max_steps=4)
    prepare(task, tmp_path / "data" / "sums")
    for results in (tmp_path, tmp_path / "nothing"):
        found = rows_of("sums", task, HUB, None, results)
        steps = [len(row.steps) for row in found.rows["train"]]
        assert (found.sizes["train"], len(steps)) == (3000, 512)
        assert sum(steps) / len(steps) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(
    ("name", "train", "counted"),
    [
        ("openai/gsm8k", 7473 - 500, True),
        ("whyNLP/gsm8k-aug", 385620, True),
        ("zen-E/GSM8k-Aug", 385620 - 500, True),
        ("some/copy", 7473 - 500, False),
    ],
)
def test_gsm8k_is_known_before_it_is_fetched(tmp_path, name, train, counted):
    """One copy has a validation split of its own; of the others training rows are set aside."""
    found = rows_of("gsm8k", Gsm8k(hub_name=name, limit={"test": 100}), HUB, None, tmp_path)
    assert found.sizes == {"train": train, "valid": 500, "test": 100}
    assert found.counted == counted
    assert found.typical() == {"prompt": 54, "generated": 30}


def test_a_split_without_rows_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": "q?", "answer": "#### 2"}))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    with pytest.raises(CopraError, match=r"tasks\.gsm8k\.train: no row"):
        rows_of("gsm8k", Gsm8k(source="files", **files), HUB, None, tmp_path)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("openai-community/gpt2", 124_439_808),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_models_of_the_presets_are_known_before_they_are_fetched(tmp_path, monkeypatch, path, parameters):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert base_size(Base(path=path), None).parameters == pytest.approx(parameters, rel=0.002)
    assert base_size(HUB, None) is None


def test_a_manifest_tells_its_size_to_the_weight():
    found = recorded_size({"shape": SHAPE.to_json(), "parameters": 123_456})
    assert (found.shape, found.parameters) == (SHAPE, 123_456)


def prune(unit, budget, **settings) -> Prune:
    return Prune(kind="prune", unit=unit, metric="magnitude", budget=budget, **settings)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (prune("layers", {"count": 3}), [(8, 4, 64)]),
        (prune("kv_groups", {"fraction": 0.5}), [(4, 2, 64)] * 4),
        (prune("heads", {"fraction": 0.5}), [(4, 4, 64)] * 4),
        (prune("neurons", {"fraction": 0.25}, multiple_of=16), [(8, 4, 48)] * 4),
        # A layer has 3072 weights in attention and 6144 in the FFN, of which an eighth is left.
        (prune("neurons", {"parameters": 0.5}, multiple_of=8), [(8, 4, 16)] * 4),
    ],
)
def test_a_cut_that_does_not_depend_on_scores_is_known(step, expected):
    least, greatest = pruned_shapes(step, SHAPE, SHAPE, flops_of)
    assert least == greatest
    assert [(layer.query_heads, layer.kv_heads, layer.ffn) for layer in least.layers] == expected


def test_a_cut_that_depends_on_scores_is_a_range():
    both = prune(["kv_groups", "neurons"], {"parameters": 0.7}, multiple_of=4)
    least, greatest = pruned_shapes(both, SHAPE, SHAPE, flops_of)
    assert flops_of(least) < flops_of(greatest) < flops_of(SHAPE)
    for shape in (least, greatest):
        assert matrix_parameters(shape) / matrix_parameters(SHAPE) == pytest.approx(0.7, abs=0.03)
    unlike = SHAPE.with_layers((*SHAPE.layers[1:], LayerShape(2, 1, 4, 8)))
    least, greatest = pruned_shapes(prune("layers", {"count": 1}), unlike, SHAPE, flops_of)
    assert flops_of(least) < flops_of(greatest)
    # A budget that cannot be met is for `copra.plan.budgets` to refuse.
    assert pruned_shapes(prune("layers", {"count": 9}), SHAPE, SHAPE, flops_of) == (SHAPE, SHAPE)
