"""Static analysis of graphs: independence of rows. Imports its sibling `torch`."""
