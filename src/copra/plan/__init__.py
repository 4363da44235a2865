"""What a run will cost, told before it is paid for: jobs, FLOPs, hours, disk."""
