"""What runs the shards of a job: threads of this process, or the workers of a cluster."""
