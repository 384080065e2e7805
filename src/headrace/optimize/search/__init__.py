"""Try ways to make a model faster, one after the other, and choose by what was measured."""
