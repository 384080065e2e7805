"""Ways to make a model faster: each makes candidates, and none is trusted before it is measured."""

from headrace.optimize.recipes.catalogue import recipes_for
from headrace.optimize.recipes.source import Prepared, prepare

__all__ = ["Prepared", "prepare", "recipes_for"]
