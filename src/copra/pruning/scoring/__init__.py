"""Importance: how much each layer, head and KV group matters, by several metrics."""
