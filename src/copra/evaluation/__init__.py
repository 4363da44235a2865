"""Evaluation: answers, accuracy, latency, and the statistics of comparisons."""
