"""Load tools: `wrk` and `h2load` where installed, an own client for everything else."""
