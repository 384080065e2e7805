"""Make a model version that runs better out of another one, and prove what was lost by it."""

from headrace.optimize.compare import Comparison, Limits, compare
from headrace.optimize.convert.convert import Conversion, convert, convertible_runtimes

__all__ = [
    "Comparison",
    "Conversion",
    "Limits",
    "compare",
    "convert",
    "convertible_runtimes",
]
