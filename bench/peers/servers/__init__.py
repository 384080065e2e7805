"""A server file for each peer, as a good user of it would write one; run in its environment."""
