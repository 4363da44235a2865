"""Whether an answer is right, and how sure a comparison of two models can be."""
