"""Importance scores of layers, heads, KV groups and FFN neurons, by several metrics."""
