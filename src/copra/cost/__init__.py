"""What an answer costs: FLOPs, sequential depth, latency, memory."""
