"""The cost of an answer: FLOPs, sequential depth, parameters and cache size."""
