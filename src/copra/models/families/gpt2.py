"""GPT-2: learned positions, one projection for q, k and v, weights stored as [in, out]."""

from copra.models.families.family import Cannot, Family, Layout, Projection

LAYOUT = Layout(
    projections=(
        Projection("attn.c_attn", ("query", "key", "value")),
        Projection("mlp.c_fc", ("neuron",)),
    ),
    attention_output="attn.c_proj",
    ffn_output="mlp.c_proj",
    transposed=True,
)

GPT2 = Family(
    "gpt2",
    LAYOUT,
    width="n_embd",
    layers="n_layer",
    query_heads="n_head",
    kv_heads=None,
    ffn="n_inner",
    ffn_per_width=4,
    heads_fill_width=True,
    tied=True,
    cannot=(
        Cannot(
            ("layers",),
            "with scale_attn_by_inverse_layer_idx attention depends on the layer's number",
            setting="scale_attn_by_inverse_layer_idx",
        ),
    ),
    refused={"add_cross_attention": "it reads an encoder"},
)
