"""The kinds of tiny models that tests take in turn."""

import pytest

# The two that differ most; and in slow tests Llama with layers of equal shapes, and GPT-2 with unequal ones.
KINDS = ["gpt2", "copra_llama"]
KINDS += [pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "copra_gpt2")]
