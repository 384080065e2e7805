"""Faster and smaller versions of a model, with measured accuracy. Imports `scoring` and below."""

from headrace.optimize.compare import Comparison, DifferenceLimits, compare
from headrace.optimize.convert.convert import Conversion, convert, convertible_runtimes

__all__ = [
    "Comparison",
    "Conversion",
    "DifferenceLimits",
    "compare",
    "convert",
    "convertible_runtimes",
]
