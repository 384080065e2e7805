"""How code counts, times and logs."""
