"""Gemma 1, 2 and 3 (text): scaled embeddings and a head size of its own; from 2 on norms after each part too.

Gemma 2 caps the scores of attention and the logits by tanh. transformers computes the first in eager
attention alone and chooses that by itself; `copra.models.logits` does the second.
"""

from dataclasses import replace

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT

GEMMA = Family(
    "gemma",
    LAYOUT,
    defaults={"num_key_value_heads": 16, "head_dim": 256},
    scaled_embedding=True,
    tied=True,
    refused={"use_bidirectional_attention": "its tokens see those after them"},
)
GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    by_layer=("layer_types",),
    defaults={"num_key_value_heads": 4, "head_dim": 256},
)
GEMMA3 = replace(GEMMA2, model_type="gemma3_text")
