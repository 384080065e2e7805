"""Programs that run in a sandbox."""
