"""Low-rank adapters: what they change, what they leave, and that they are merged without a trace."""

import pytest
import torch
from plain_training import log_of, weights
from torch.nn import functional

from copra.data.sequences import Markers
from copra.data.tokenization import MARKERS
from copra.methods.reasoning_model import ReasoningModel
from copra.models.extra_modules import make_extra_modules
from copra.schema.training import Lora
from copra.training.adapters import adapted

RANK = 3
LORA = {"rank": RANK, "alpha": 6.0}
IDS = Markers(start=47, latent=48, end=49)
# All linear layers of a block, by the ends of their names.
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
LINEAR = {"llama": LLAMA, "copra_llama": LLAMA, "gpt2": GPT2, "copra_gpt2": GPT2}
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")


def linear_names(model) -> list[str]:
    """The names of the weights of all linear layers of the blocks."""
    ends = tuple(f"{name}.weight" for name in LINEAR[model.config.model_type])
    names = [name for name in model.state_dict() if name.endswith(ends)]
    assert len(names) == model.config.num_hidden_layers * len(ends)
    return names


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_only_linear_layers_and_rows_of_markers_change(make_trainer, word_tokenizer, architecture, tied):
    """And the extra_modules, which have no adapters. Weight decay must not touch the other rows either."""
    trainer = make_trainer("projected", architecture=architecture, tied=tied, lora=LORA, weight_decay=0.3)
    before, parts_before = weights(trainer.model), weights(trainer.extra_modules)
    trainer.run()
    after, linear = weights(trainer.model), linear_names(trainer.model)
    assert list(after) == list(before)
    start, latent, end = word_tokenizer.convert_tokens_to_ids(list(MARKERS))
    for name, value in after.items():
        change = value - before[name]
        if name in linear:
            assert 0 < torch.linalg.matrix_rank(change.double(), rtol=1e-4) <= RANK, name
        elif name.endswith(EMBEDDINGS):
            changed = set(change.any(dim=1).nonzero().flatten().tolist())
            # This stage feeds hidden states, so that the latent's embedding counts as an output alone.
            assert changed == {start, end, *([latent] if tied or name == "lm_head.weight" else [])}, name
        else:
            assert not change.any(), name
    for name, value in trainer.extra_modules.state_dict().items():
        assert not torch.equal(value, parts_before[name]), name


def adapters(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of every layer that has an adapter."""
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in model.named_modules()
        if hasattr(module, "lora_B")
    }


def shake(parameters, scale: float = 0.05) -> None:
    """Change everything that may be trained by random amounts."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in parameters:
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_model_is_the_adapted_one_and_a_plain_one(make_model, tmp_path, kind, tied):
    """Against W + alpha / r B A with each layer's own B and A; GPT-2 has its weights transposed."""
    model = make_model(kind, double=False, tied=tied)
    before, kinds = weights(model), {name: type(module) for name, module in model.named_modules()}
    input_ids = torch.arange(1, 15)[None]
    with torch.no_grad(), adapted(ReasoningModel(model), Lora(**LORA), (), IDS) as groups:
        untouched = model(input_ids).logits
        shake(parameter for matrices in adapters(model).values() for parameter in matrices)
        logits = model(input_ids).logits
        products = {name: (b @ a).clone() for name, (a, b) in adapters(model).items()}
        assert sum(p.numel() for p in groups[0]["params"]) == sum(
            RANK * sum(before[f"{name}.weight"].shape) for name in products
        )
    assert torch.equal(untouched, make_model(kind, double=False, tied=tied)(input_ids).logits)
    assert (logits - untouched).abs().max() > 0.1
    assert torch.allclose(model(input_ids).logits, logits, atol=1e-3)
    after = weights(model)
    assert {f"{name}.weight" for name in products} == set(linear_names(model))
    for name, product in products.items():
        delta = 2.0 * (product.T if kind.endswith("gpt2") else product)
        assert torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"] + delta, atol=1e-6), name
    # Nothing is left of the adapters.
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert list(after) == list(before)
    assert not hasattr(model, "peft_config")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(input_ids).logits, model(input_ids).logits)
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_weights_that_are_adapted(make_model, kind, tied):
    """dL/dB = alpha / r dL/dW A' and dL/dA = alpha / r B' dL/dW; rows of markers have theirs, others none."""
    model, plain = make_model(kind, tied=tied), make_model(kind, tied=tied)
    tokens = torch.tensor([[3, 47, 9, 49, 48, 20, 11]])

    def loss(m):
        logits = m(tokens).logits
        return functional.cross_entropy(logits[0, :-1], tokens[0, 1:])

    with adapted(ReasoningModel(model), Lora(**LORA), (), IDS) as groups:
        shake(groups[0]["params"])
        loss(model).backward()
        with torch.no_grad():
            for name, (a, b) in adapters(model).items():
                delta = 2.0 * (b @ a)
                plain.get_parameter(f"{name}.weight").add_(delta.T if kind.endswith("gpt2") else delta)
        loss(plain).backward()
        for name, (a, b) in adapters(model).items():
            whole = plain.get_parameter(f"{name}.weight").grad
            whole = 2.0 * (whole.T if kind.endswith("gpt2") else whole)
            assert torch.allclose(b.grad, whole @ a.T, rtol=1e-6, atol=1e-9), name
            assert torch.allclose(a.grad, b.T @ whole, rtol=1e-6, atol=1e-9), name
        markers = [IDS.start, IDS.latent, IDS.end]
        for getter in ("get_input_embeddings", "get_output_embeddings"):
            ours, whole = getattr(model, getter)().weight.grad, getattr(plain, getter)().weight.grad
            assert torch.allclose(ours[markers], whole[markers], rtol=1e-6, atol=1e-9)
            assert whole.any(dim=1).sum() > ours.any(dim=1).sum() == 3
        with_gradient = [p for p in model.parameters() if p.grad is not None]
        assert {id(p) for p in with_gradient} == {id(p) for group in groups for p in group["params"]}


def test_parts_are_trained_whole_unless_they_are_frozen(make_model):
    model = make_model("llama")
    reasoner = ReasoningModel(model, make_extra_modules(model, {"projection": {}, "mind_reader": {}}))
    with adapted(reasoner, Lora(**LORA), ("mind_reader",), IDS) as groups:
        (others, rows) = groups
        assert rows == {"params": [model.get_input_embeddings().weight], "weight_decay": 0.0}
        chosen = {id(parameter) for parameter in others["params"]}
        expected = [p for matrices in adapters(model).values() for p in matrices]
        assert chosen == {id(p) for p in [*expected, *reasoner.extra_modules["projection"].parameters()]}
        assert not any(p.requires_grad for p in reasoner.extra_modules["mind_reader"].parameters())
    assert all(parameter.requires_grad for parameter in reasoner.parameters())


@pytest.mark.parametrize("lora", [None, Lora(**LORA)])
def test_a_frozen_model_gets_no_adapters(make_model, lora):
    model = make_model("llama")
    reasoner = ReasoningModel(model, make_extra_modules(model, {"projection": {}, "mind_reader": {}}))
    with adapted(reasoner, lora, ("model", "mind_reader"), IDS) as groups:
        assert adapters(model) == {}
        (group,) = groups
        assert {id(p) for p in group["params"]} == {
            id(p) for p in reasoner.extra_modules["projection"].parameters()
        }


def test_without_adapters_everything_is_trained(make_model):
    model = make_model("gpt2")
    reasoner = ReasoningModel(model, make_extra_modules(model, {"projection": {}}))
    with adapted(reasoner, None, (), IDS) as groups:
        assert [{id(p) for p in group["params"]} for group in groups] == [
            {id(p) for p in reasoner.parameters()}
        ]


def test_adapters_have_dropout_in_training_alone(make_trainer):
    losses = {}
    for dropout in (0.0, 0.5):
        trainer = make_trainer(
            lora={**LORA, "dropout": dropout},
            state=str(dropout),
            steps=3,
            num_validations=1,
            learning_rate=3e-2,
        )
        trainer.run()
        losses[dropout] = [line["loss"] for line in log_of(trainer)]
    # An adapter does nothing before its first step.
    assert losses[0.0][0] == losses[0.5][0]
    assert losses[0.0][1:] != losses[0.5][1:]
