"""Recipes that build faster candidates, each of which is measured before it is used."""

from headrace.optimize.recipes.catalogue import recipes_for
from headrace.optimize.recipes.source import Prepared, prepare

__all__ = ["Prepared", "prepare", "recipes_for"]
