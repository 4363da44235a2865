"""Files, locks, processes, GPUs and errors: what every other folder uses."""
