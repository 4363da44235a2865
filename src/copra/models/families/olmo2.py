"""OLMo2: norms after attention and FFN, and one norm each over the queries and the keys of all heads."""

from copra.models.families.family import Cannot, Family
from copra.models.families.llama import LAYOUT

OLMO2 = Family("olmo2", LAYOUT, cannot=(Cannot(("kv_groups", "heads"), "their q/k norm spans all heads"),))
