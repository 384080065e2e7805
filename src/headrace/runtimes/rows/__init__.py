"""Static analysis of graphs: which operators keep the rows of a batch apart."""
