"""How many replicas, nodes and clusters does a load need, and what do they cost? Pure."""
