"""Who runs streams? Worker processes, kept at their number, replaced one by one."""
