"""Evaluations as `copra evaluate` writes them, with answers by hand."""

import json

import pandas

PARTS = ("prefill", "latent", "decode", "attention", "ffn", "head", "method", "cached_prompt")
TOKENS = ("prompt", "latent", "marker", "chain", "answer", "generated")


def write_evaluation(root, node, correct, flops=1000, ids=None, parameters=100, cut_off=0, **changed):
    """Write an evaluation whose answers are `correct`, at `flops` an answer, the first `cut_off` of them at
    the length limit; return its folder, `root`/NODE."""
    n = len(correct)
    predictions = pandas.DataFrame(
        {
            "id": ids or [f"q{index}" for index in range(n)],
            "question": "how many?",
            "gold": "1",
            "generated": "### 1",
            "extracted": "1",
            "correct": [bool(value) for value in correct],
            **{f"n_{name}": [index % 3 for index in range(n)] for name in TOKENS},
            "n_generated": [1 + index % 3 for index in range(n)],
            "hit_length_limit": [index < cut_off for index in range(n)],
            "depth": 5,
            "flops": [flops - 1, flops + 1] * (n // 2) + [flops] * (n % 2),
            **{f"flops_{name}": flops // 4 for name in PARTS},
        }
    )
    metrics = {
        "node": node,
        "n": n,
        "correct": int(predictions["correct"].sum()),
        "accuracy": float(predictions["correct"].mean()),
        "flops": {"total": float(predictions["flops"].mean())}
        | {name: float(predictions[f"flops_{name}"].mean()) for name in PARTS},
        "tokens": {name: float(predictions[f"n_{name}"].mean()) for name in TOKENS},
        "depth": 5.0,
        "hit_length_limit": cut_off,
        "precision": "float32",
        "answer_rule": "marker",
        "max_new_tokens": 256,
        "parameters": parameters,
        "checkpoint_bytes": 4 * parameters,
        "units": {"layers": 2, "kv_groups": 4, "heads": 8, "neurons": 96},
        "kv_cache_bytes_per_token": 64,
        "training_flops": 7e12,
        "seen_in_training": 0,
        **changed,
    }
    folder = root / node
    folder.mkdir(parents=True)
    predictions.to_parquet(folder / "predictions.parquet")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
