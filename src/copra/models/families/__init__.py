"""The families of models that copra knows: one file each, and one line here."""

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
"""By the model type in config.json."""

LAYOUTS: tuple[Layout, ...] = tuple(dict.fromkeys(family.layout for family in FAMILIES.values()))
"""Every way in which a decoder layer is put together."""


def family_of(model_type: str | None) -> Family:
    """The family of a model type; copra's own class of a family has its type with `copra_` before it.

    Raises:
        CopraError: the type is not known.
    """
    family = FAMILIES.get((model_type or "").removeprefix(PREFIX))
    if family is None:
        raise CopraError(
            f"model_type {model_type!r} is not supported. Take a model of one of the types "
            f"{', '.join(FAMILIES)}."
        )
    return family
