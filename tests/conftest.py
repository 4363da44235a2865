"""What tests of several folders share: tiny models, a few rows, and a tokenizer for them.

Heavy modules are imported inside the fixtures, so that tests without torch stay quick.
"""

import os
import random
import types
from pathlib import Path

import pytest

from helpers.kinds import KINDS

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests are those of copra itself, whatever is installed beside it.
os.environ["COPRA_PLUGINS"] = "off"
# Tests compute on the CPU, whatever the machine has. With COPRA_TEST_DEVICE=cuda checkpoints are loaded onto
# the one GPU that CUDA_VISIBLE_DEVICES names (the first): a list of one is not locked, so no test waits.
if os.environ.get("COPRA_TEST_DEVICE", "cpu") == "cuda":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
# Folders whose tests have a mark of the same name.
MARKED = {"workflow", "slurm", "kubernetes", "real"}
OVERRIDES = [
    {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24},
    {"num_attention_heads": 6, "num_key_value_heads": 3},
    {},
]
GPT2_OVERRIDES = [{"n_head": 2, "n_inner": 24}, {"n_head": 3}, {}]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks by folder, GPU tests skipped where there is none, and the long tests first, so that at the end no
    process waits for another."""
    for item in items:
        if (folder := _folder(item)) in MARKED:
            item.add_marker(folder)
        if item.get_closest_marker("gpu") and not os.environ["CUDA_VISIBLE_DEVICES"]:
            item.add_marker(pytest.mark.skip(reason="needs COPRA_TEST_DEVICE=cuda"))
    items.sort(key=lambda item: _folder(item) not in MARKED)


def _folder(item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Computes on the CPU even where the suite runs on a GPU: processes that work together need one each, and
    a fork cannot use CUDA once its parent has."""
    import torch
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # It remembers the device of the first training of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def _make_model(
    kind: str,
    vocabulary: int = 50,
    double: bool = True,
    dropout: float = 0.0,
    tied: bool = True,
    layers: int = 3,
):
    """A tiny model of three layers or more with random weights, in evaluation mode.

    The weights are large, so that outputs depend on all of the input; float64 keeps comparisons sharp.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from copra.models.per_layer import (
        CopraGPT2Config,
        CopraGPT2LMHeadModel,
        CopraLlamaConfig,
        CopraLlamaForCausalLM,
    )

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shared = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shared |= {"initializer_range": 0.3, "tie_word_embeddings": tied}
    llama = {
        **SIZES,
        **shared,
        "num_hidden_layers": layers,
        "intermediate_size": 40,
        "max_position_embeddings": 128,
    }
    gpt2 = {"n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 128, **shared}
    gpt2 |= dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
    alike = [{}] * (layers - 3)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**llama))
    elif kind == "copra_llama":
        model = CopraLlamaForCausalLM(CopraLlamaConfig(**llama, layer_overrides=[*OVERRIDES, *alike]))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**gpt2))
    else:
        overrides = [*GPT2_OVERRIDES, *alike]
        model = CopraGPT2LMHeadModel(CopraGPT2Config(**gpt2, head_dim=8, layer_overrides=overrides))
    if double:
        model.double()
        for module in model.modules():
            if isinstance(module, LlamaRMSNorm):
                module.forward = types.MethodType(_rms_norm, module)
    return model.eval()


def _rms_norm(self, x):
    """Llama's norm without its detour over float32."""
    return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


@pytest.fixture(scope="session")
def make_model():
    """Makes a tiny Llama with GQA, GPT-2, or one of either with unequal layers; see `_make_model`."""
    return _make_model


@pytest.fixture(params=KINDS)
def any_model(request):
    """Each of the tiny models in turn, in float64."""
    return _make_model(request.param)


@pytest.fixture(scope="session")
def rows():
    """24 little sums with one to three steps, such as: 2 and 3 and 4 ?, 2 + 3 = 5, 5 + 4 = 9, 9."""
    from copra.tasks.task import Row

    draw = random.Random(1)
    found: dict[str, Row] = {}
    while len(found) < 24:
        numbers = [draw.randrange(1, 6) for _ in range(2 + len(found) % 3)]
        total, steps = numbers[0], []
        for number in numbers[1:]:
            steps.append(f"{total} + {number} = {total + number}")
            total += number
        question = " and ".join(map(str, numbers)) + " ?"
        found.setdefault(question, Row(question, tuple(steps), str(total)))
    return list(found.values())


@pytest.fixture(scope="session")
def word_base(rows):
    """Makes a tiny base model (float32) and its word tokenizer with markers, for `rows`."""
    from copra.models.bases import make_base
    from copra.schema.base import Base, FromScratch

    def make(architecture: str = "llama", seed: int = 0, **changes):
        kv_heads = 2 if architecture == "llama" else None
        sizes = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": kv_heads, "intermediate_size": 48}
        spec = FromScratch(
            **{"architecture": architecture, **sizes, "max_position_embeddings": 64, **changes}
        )
        model, tokenizer = make_base(Base(from_scratch=spec), rows, seed)
        return types.SimpleNamespace(model=model, tokenizer=tokenizer)

    return make


@pytest.fixture(scope="session")
def word_tokenizer(word_base):
    """The word tokenizer of `rows`, with markers."""
    return word_base().tokenizer
