"""Starting runs: on this machine, through Accelerate, or under Slurm. Never imports torch."""
