"""The forecast of an experiment's jobs."""

from copra.plan.forecast import forecast


def test_ranges_begin_with_their_least_value(make_workflow):
    """The cut with the fewest FLOPs per answer may have more weights than that with the most."""
    workflow = make_workflow(
        **{
            "steps__half": {
                "kind": "prune",
                "unit": ["kv_groups", "neurons"],
                "metric": "taylor",
                "objective": "cot",
                "multiple_of": 16,
                "budget": {"flops": 0.5},
            },
            "bases__llama__from_scratch": {
                "hidden_size": 64,
                "layers": 4,
                "heads": 2,
                "kv_heads": 2,
                "intermediate_size": 128,
                "max_position_embeddings": 128,
            },
            "recipes": [["cot", "half", "no-cot"]],
        }
    )
    lines = forecast(workflow).lines.values()
    ranges = [
        each
        for line in lines
        for each in (line.flops, line.seconds, line.training, line.disk, line.memory)
        if each is not None
    ]
    assert any(low < high for low, high in ranges)
    assert all(low <= high for low, high in ranges)
