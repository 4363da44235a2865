"""The registry of model families: one file and one line here per family."""

from copra.models.families.family import PREFIX, Family, Layout
from copra.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from copra.models.families.gpt2 import GPT2
from copra.models.families.gpt_neox import GPT_NEOX
from copra.models.families.llama import LLAMA
from copra.models.families.mistral import MISTRAL
from copra.models.families.olmo2 import OLMO2
from copra.models.families.phi3 import PHI3
from copra.models.families.qwen import QWEN2, QWEN3
from copra.models.families.smollm3 import SMOLLM3
from copra.utils.errors import CopraError

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        SMOLLM3,
        OLMO2,
        GEMMA,
        GEMMA2,
        GEMMA3,
        PHI3,
        GPT_NEOX,
        GPT2,
    )
}
"""The supported families, by the model type in config.json."""

LAYOUTS: tuple[Layout, ...] = tuple(dict.fromkeys(family.layout for family in FAMILIES.values()))
"""All distinct layouts of a decoder layer."""


def family_of(model_type: str | None) -> Family:
    """Return the family of a model type, with or without the prefix `copra_` of copra's own classes.

    Raises:
        CopraError: the type is not supported.
    """
    family = FAMILIES.get((model_type or "").removeprefix(PREFIX))
    if family is None:
        raise CopraError(
            f"model_type {model_type!r} is not supported. Take a model of one of the types "
            f"{', '.join(FAMILIES)}."
        )
    return family
