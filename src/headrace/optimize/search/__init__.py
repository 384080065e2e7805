"""Search for the best candidate: steps, journal, plan and result."""
