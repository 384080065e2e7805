"""Commands that start, configure and stop a system on a host."""
