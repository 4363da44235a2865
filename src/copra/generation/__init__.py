"""GenerationSpec: batched, cached, greedy, with latents."""
