"""Runtime of optimized models: several engines as one."""
