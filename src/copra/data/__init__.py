"""Convert rows to token sequences, and these to batches."""
