"""From rows to token sequences to batches."""
