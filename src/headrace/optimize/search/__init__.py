"""Search over recipes. Imports its siblings `accuracy`, `prune`, `recipes`, `report`, `timing`."""
