"""GPT-NeoX (Pythia): q, k and v interleaved by head, attention and FFN in parallel, partly rotary."""

from copra.models.families.family import Family, Layout, Projection

LAYOUT = Layout(
    projections=(
        Projection("attention.query_key_value", ("query", "key", "value"), by_head=True),
        Projection("mlp.dense_h_to_4h", ("neuron",)),
    ),
    attention_output="attention.dense",
    ffn_output="mlp.dense_4h_to_h",
)

GPT_NEOX = Family("gpt_neox", LAYOUT, kv_heads=None, heads_fill_width=True)
