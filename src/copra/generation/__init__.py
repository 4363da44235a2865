"""Batched, cached, greedy generation, with or without latents."""
