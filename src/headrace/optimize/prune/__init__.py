"""Structured pruning: hidden units, attention heads, channels. Imports no sibling.

Files of other formats are pruned in their ONNX form, whatever framework they come from: a
TorchScript file has no layers that `torch-pruning` could take (it changes nothing and says
nothing), and the module of an exported program cannot be put into its evaluation mode.
"""

from headrace.optimize.prune.groups import PruneCut, Pruned, Unit
from headrace.optimize.prune.recipes import COMPRESSION_RECIPES, RECIPES

__all__ = [
    "COMPRESSION_RECIPES",
    "RECIPES",
    "PruneCut",
    "Pruned",
    "Unit",
]
