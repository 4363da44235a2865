"""Llama: q, k, v and o projections, a gated FFN, RMSNorm, rotary positions; with or without biases."""

from copra.models.families.family import Family, Layout, Projection

ATTENTION = (
    Projection("self_attn.q_proj", ("query",)),
    Projection("self_attn.k_proj", ("key",)),
    Projection("self_attn.v_proj", ("value",)),
)
FFN = (Projection("mlp.gate_proj", ("neuron",)), Projection("mlp.up_proj", ("neuron",)))
LAYOUT = Layout(
    projections=(*ATTENTION, *FFN), attention_output="self_attn.o_proj", ffn_output="mlp.down_proj"
)

LLAMA = Family("llama", LAYOUT)
