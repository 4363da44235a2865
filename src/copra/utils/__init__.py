"""Files, locks, processes, GPUs and errors, for all other folders."""
