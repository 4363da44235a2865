"""Tables of accuracy against FLOPs written by hand, for the figures and the finding."""

import pandas

WHOLE = {"layers": 4, "kv_groups": 8, "heads": 16, "neurons": 400}
CUTS = {
    "dense": {},
    "drop-1": {"layers": 3, "kv_groups": 6, "heads": 12, "neurons": 300},
    "drop-2": {"layers": 2, "kv_groups": 4, "heads": 8, "neurons": 200},
    "drop-3": {"layers": 1, "kv_groups": 2, "heads": 4, "neurons": 100},
    "width-75": {"kv_groups": 6, "heads": 12, "neurons": 300},
    "width-50": {"kv_groups": 4, "heads": 8, "neurons": 200},
    "groups-half": {"kv_groups": 4, "heads": 8},
    "thin": {"neurons": 200},
    "both": {"layers": 2, "kv_groups": 2, "heads": 4, "neurons": 100},
}
KINDS = {
    "more-cot": "cot",
    "no-cot": "no_cot",
    "coconut": "coconut",
    "pause-as-thought": "pause_as_thought",
}


def left_share(cut: str) -> float:
    """The FLOPs of a cut, relative to the dense model."""
    units = WHOLE | CUTS[cut]
    return (units["heads"] / 16 + 2 * units["neurons"] / 400) / 3


def recipe(method, cut="dense", accuracy=0.5, *, order="before", small=False, base="llama", **changes):
    """The rows of one recipe; of several seeds if `accuracy` is a list, which holds theirs."""
    steps = [base, "cot", *([cut] if cut != "dense" else []), method]
    if order == "after":
        steps = [base, "cot", method, cut]
    prunings = [*([cut] if cut != "dense" else []), *(["int8"] if small else [])]
    steps += ["int8"] if small else []
    flops = 1000 * left_share(cut)
    row = {
        "recipe": "+".join(steps),
        "base": base,
        "pruning": " + ".join(prunings) or "dense",
        "method": method,
        "order": " > ".join(steps),
        "kind": KINDS[method],
        "chance": float("nan"),
        "reference": method == "more-cot" and cut == "dense",
        "n": 200,
        **WHOLE,
        **CUTS[cut],
        "flops": flops,
        "flops_ratio": flops / 1000,
        "attention_flops": flops / 3,
        "parameters": 100 * flops,
        "checkpoint_bytes": 100 * flops * (1.2 if small else 4),
        "kv_cache_bytes_per_token": 64 * (WHOLE | CUTS[cut])["kv_groups"],
        "seconds_batch_1": float("nan"),
        "pareto": False,
        **changes,
    }
    seeds = accuracy if isinstance(accuracy, list) else [accuracy]
    values = [("all", sum(seeds) / len(seeds))]
    values += [(str(seed), value) for seed, value in enumerate(seeds)] if len(seeds) > 1 else []
    return [
        {**row, "seed": seed, "accuracy": value, "low": max(0, value - 0.02), "high": min(1, value + 0.03)}
        for seed, value in values
    ]


def table(*recipes) -> pandas.DataFrame:
    """The table of some recipes."""
    return pandas.DataFrame([row for rows in recipes for row in rows])
