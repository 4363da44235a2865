"""copra: how much accuracy does a pruned model that reasons in latent space keep per FLOP?"""

__version__ = "0.1.0"
