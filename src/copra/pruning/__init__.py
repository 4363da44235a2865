"""Pruning: budgets, legal removal steps, the plan, the surgery and its proof."""
