"""Recipes that make candidates of a model. Imports its sibling `convert`."""

from headrace.optimize.recipes.catalogue import recipes_for
from headrace.optimize.recipes.source import Prepared, prepare

__all__ = ["Prepared", "prepare", "recipes_for"]
