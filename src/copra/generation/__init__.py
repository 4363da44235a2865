"""Decoding: batched, cached, greedy, with latents."""
