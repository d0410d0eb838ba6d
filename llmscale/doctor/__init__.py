"""`llmscale doctor`: whether this machine, its ranks and its Slurm can do what a run asks of them."""
