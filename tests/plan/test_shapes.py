"""Sizes of models: against published ones and real models, and shapes after prunings, by hand."""

import pytest

from copra.plan.shapes import base_size, estimated_cut, recorded_size, size_of
from copra.schema.base import Base, FromScratch
from copra.schema.pruning import Prune
from copra.schema.shape import LayerShape, ModelShape

LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
}
SHAPE = ModelShape("llama", 32, 50, 3, (LayerShape(8, 4, 4, 64),) * 4)
TYPICAL = {"prompt": 10, "generated": 10}


def test_published_sizes():
    assert size_of(LLAMA_1B).parameters == 1_235_814_400
    assert size_of(GPT2).parameters == 124_439_808


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model_from_scratch_is_as_large_as_it_will_be(rows, architecture, tied):
    from copra.models.bases import make_base
    from copra.models.shape import shape_of

    kv_heads = 2 if architecture == "llama" else None
    sizes = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": kv_heads, "intermediate_size": 48}
    base = Base(
        from_scratch=FromScratch(
            architecture=architecture, tie_word_embeddings=tied, max_position_embeddings=64, **sizes
        )
    )
    model, tokenizer = make_base(base, rows, 0)
    found = base_size(base, len(tokenizer) - 6)
    assert found.shape == shape_of(model.config.to_dict())
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_byte_level_vocabulary_is_as_large_as_it_may_be():
    spec = FromScratch(
        hidden_size=16, layers=1, heads=2, intermediate_size=16, tokenizer="bpe", vocabulary=300
    )
    assert base_size(Base(from_scratch=spec), 80).shape.vocabulary == 303


def test_a_folder_tells_its_size(tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    assert base_size(Base(path=str(tmp_path)), None).parameters == 124_439_808


def test_the_hubs_cache_tells_what_was_fetched(tmp_path, monkeypatch):
    import json

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = Base(path="openai-community/gpt2")
    assert base_size(base, None) is None
    folder = tmp_path / "models--openai-community--gpt2"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(GPT2))
    assert base_size(base, None).parameters == 124_439_808
    assert base_size(Base(path="/no/such/folder"), None) is None


def test_a_manifest_tells_its_size_to_the_weight():
    found = recorded_size({"shape": SHAPE.to_json(), "parameters": 123_456})
    assert (found.shape, found.parameters) == (SHAPE, 123_456)
    # A layer has 32 * 4 * 2 * (8 + 4) + 3 * 32 * 64 weights in matrices, and two norms.
    fewer = found.pruned(SHAPE.with_layers(SHAPE.layers[1:]))
    assert fewer.parameters == 123_456 - (3072 + 6144 + 64)


def prune(unit, budget, **settings) -> Prune:
    return Prune(kind="prune", unit=unit, metric="random", budget=budget, **settings)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (prune("layers", {"count": 3}), [(8, 4, 64)]),
        (prune("layers", {"fraction": 0.5}, protect=[0]), [(8, 4, 64)] * 2),
        (prune("kv_groups", {"fraction": 0.5}), [(4, 2, 64)] * 4),
        (prune("kv_groups", {"count": 6}, scope="global"), [(4, 2, 64)] * 2 + [(6, 3, 64)] * 2),
        (prune("heads", {"fraction": 0.5}), [(4, 4, 64)] * 4),
        (prune("neurons", {"fraction": 0.25}, multiple_of=16), [(8, 4, 48)] * 4),
        (prune("neurons", {"count": 96}, multiple_of=32, protect=[0]), [(8, 4, 64), *[(8, 4, 32)] * 3]),
        # Half of 4 (3072 + 6144) weights: those of attention, 12,288, and a fourth of the FFN's.
        (prune("neurons", {"parameters": 0.5}, multiple_of=16), [(8, 4, 16)] * 4),
    ],
)  # fmt: skip
def test_cuts_by_number_are_right_to_the_unit(step, expected):
    found = estimated_cut(step, SHAPE, SHAPE, TYPICAL)
    assert [(layer.query_heads, layer.kv_heads, layer.ffn) for layer in found.layers] == expected


def test_a_budget_of_flops_is_met_nearly():
    from copra.cost.flops import of_typical_answer

    whole = of_typical_answer(SHAPE, TYPICAL).total
    for unit in ("neurons", ["layers", "kv_groups", "neurons"]):
        step = prune(unit, {"flops": 0.6}, multiple_of=8)
        left = of_typical_answer(estimated_cut(step, SHAPE, SHAPE, TYPICAL), TYPICAL).total
        assert left / whole == pytest.approx(0.6, abs=0.03)
