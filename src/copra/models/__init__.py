"""Models: shapes, module names, extra modules, checkpoints and their manifests."""
