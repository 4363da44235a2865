"""Tiny models of every family, with random weights, norms and biases, for the tests of all families."""

import types

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

TOKENS = {"vocab_size": 40, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "initializer_range": 0.15,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 6}
WINDOW = {"sliding_window": 4}
WINDOWS = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 6}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 12, "n_positions": 64, "initializer_range": 0.15}

# Windows are shorter than the texts of the tests, so that they matter.
CASES = {
    "llama": ("llama", {**GROUPED, "head_dim": 6}),
    "llama with biases": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**GROUPED, **WINDOW}),
    "qwen2": ("qwen2", {**GROUPED, **WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 6}),
    "smollm3": ("smollm3", {**GROUPED, **WINDOW, "use_sliding_window": True, "no_rope_layer_interval": 2}),
    "olmo2": ("olmo2", GROUPED),
    "gemma": ("gemma", GEMMA),
    "gemma2": ("gemma2", {**GEMMA, **WINDOWS, **CAPS}),
    "gemma3_text": ("gemma3_text", {**GEMMA, **WINDOWS, "query_pre_attn_scalar": 6}),
    "phi3": ("phi3", {**GROUPED, **WINDOW, "partial_rotary_factor": 0.5}),
    "phi3 with long texts": ("phi3", {**GROUPED, "rope_parameters": LONG}),
    "gpt_neox": ("gpt_neox", SIZES),
    "gpt_neox in series": ("gpt_neox", {**SIZES, "use_parallel_residual": False, "rotary_pct": 0.5}),
    "gpt2": ("gpt2", GPT2),
}
"""Model type and config by name."""


def make(case: str, seed: int = 0) -> nn.Module:
    """A model of four layers in float64 and evaluation mode."""
    model_type, sizes = CASES[case]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**sizes, **TOKENS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or ".ln_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return precise(model)


def precise(model: nn.Module) -> nn.Module:
    """The model in float64, its RMS norms too, which otherwise go by way of float32."""
    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm, module)
    return model.eval()


def capped_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, softcap=None, **_):
    """Attention with capped scores, c tanh(z / c), of query [B, H, T, D] and key and value [B, K, S, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


def _norm(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    gemma = type(self).__name__.startswith("Gemma")
    eps = self.eps if gemma else self.variance_epsilon
    return (self.weight + gemma) * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
