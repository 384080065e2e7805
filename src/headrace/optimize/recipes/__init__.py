"""Ways to make a model faster: each makes candidates, and none is trusted before it is measured."""
