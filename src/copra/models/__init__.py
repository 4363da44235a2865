"""Models: sizes, anatomy, tokens, checkpoints and their manifests."""
