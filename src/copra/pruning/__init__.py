"""Pruning: budget and legality, the plan, the surgery and its proof."""
