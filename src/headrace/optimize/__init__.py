"""Make a model version that runs better out of another one, and prove what was lost by it."""

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
