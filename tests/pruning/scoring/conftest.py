from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from copra.data.batch import collate
from copra.data.sequences import IGNORED, GenerationSpec, Sample
from copra.models.per_layer import (
    CopraGPT2Config,
    CopraGPT2LMHeadModel,
    CopraLlamaConfig,
    CopraLlamaForCausalLM,
)
from helpers.kinds import KINDS

TOKENS = {"vocab_size": 30, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"head_dim": 6, "intermediate_size": 20, "initializer_range": 0.3}
LLAMA_LAYERS = [
    {"num_attention_heads": 2, "num_key_value_heads": 1},
    {"intermediate_size": 12},
    {"num_key_value_heads": 1},
]
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 20, "n_positions": 32, "initializer_range": 0.3}
GPT2_LAYERS = [{"n_head": 1}, {"n_head": 3, "n_inner": 12}, {}]
LATENT = 29


def make(kind):
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**LLAMA, **TOKENS))
    if kind == "copra_llama":
        biased = {"attention_bias": True, "mlp_bias": True}
        config = CopraLlamaConfig(**LLAMA, **TOKENS, **biased, layer_overrides=LLAMA_LAYERS)
        return CopraLlamaForCausalLM(config)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**GPT2, **TOKENS))
    return CopraGPT2LMHeadModel(CopraGPT2Config(**GPT2, **TOKENS, layer_overrides=GPT2_LAYERS))


@pytest.fixture(params=KINDS)
def model(request, monkeypatch):
    """A tiny model in float64 with weights far from the small usual ones, and dropout where it has any."""
    # Llama's norm rounds to float32 whatever the model's type, which would drown small differences.
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda norm, x: norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt(),
    )
    torch.manual_seed(3)
    model = make(request.param).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name or "ln_" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    return model


def samples(*sizes):
    """Random tokens by the length of what is before the latents, their number, and the length after them;
    labels are on the last so many tokens."""
    generator = torch.Generator().manual_seed(5)
    for number, (before, latents, after, labels) in enumerate(sizes):
        drawn = torch.randint(LATENT, (before + after,), generator=generator).tolist()
        tokens = drawn[:before] + [LATENT] * latents + drawn[before:]
        ignored = [IGNORED] * (len(tokens) - labels)
        yield Sample(str(number), tokens, ignored + tokens[len(ignored) :], before, latents)


def make_calibration(kind):
    """Five examples of different lengths: `samples`, `decoding`, and `batches(size)` of them.

    Latent ones have 0 to 3 latents, so that prefixes are padded on the left and the whole on the right.
    """
    if kind == "text":
        chosen = list(samples((9, 0, 0, 5), (5, 0, 0, 3), (7, 0, 0, 1), (9, 0, 0, 8), (3, 0, 0, 2)))
        decoding = None
    else:
        chosen = list(samples((5, 2, 4, 3), (2, 3, 2, 1), (4, 0, 3, 2), (1, 1, 5, 4), (3, 3, 1, 1)))
        decoding = GenerationSpec((), 3, "hidden", LATENT, ())

    def batches(size):
        return (collate(chosen[first : first + size], pad=0) for first in range(0, len(chosen), size))

    return SimpleNamespace(samples=chosen, decoding=decoding, batches=batches)


@pytest.fixture(params=["text", "latent"])
def calibration(request):
    """Examples without and with latents."""
    return make_calibration(request.param)


@pytest.fixture
def with_latents():
    """The examples with latents."""
    return make_calibration("latent")


@pytest.fixture
def no_parts():
    return torch.nn.ModuleDict()
