"""The cost of a run before it starts: jobs, FLOPs, hours, disk."""
