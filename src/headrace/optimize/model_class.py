"""What kind of model is it? Told by the operators in its graph, as no recipe fits every kind."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.core import UnsupportedModelError
from headrace.optimize.candidate import ModelClass
from headrace.optimize.onnx_facts import OnnxFacts, read_onnx_facts

_TREE_RUNTIMES: Final = frozenset({"catboost", "lightgbm", "xgboost"})
_PRODUCTS: Final = ("MatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul")
_MORE_PRODUCTS: Final = ("MatMulIntegerToFloat", "FusedMatMul", "MatMulNBits", "QGemm", "Einsum")
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv")
_NORMS: Final = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_FUSED_NORMS: Final = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_MORE_NORMS: Final = ("EmbedLayerNormalization", "GroupQueryAttention")
_ATTENTION: Final = ("Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention")
_TREES: Final = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
_PRODUCTS_A_LAYER: Final = 4
"""What projects queries, keys, values and the result, beside the scores and their mixing."""


@dataclass(frozen=True, slots=True)
class Classification:
    """A model's class, and why, in words."""

    model_class: ModelClass
    reason: str


def classify(path: Path, runtime: str) -> Classification:
    """What kind of model lies at `path`, which `runtime` loads.

    A model that is no ONNX and no trees is told apart once it has been converted.

    Raises:
        UnsupportedModelError: It is damaged, or there is none.
    """
    if runtime in _TREE_RUNTIMES:
        return Classification(ModelClass.TREES, f"it is a model of {runtime}")
    if runtime == "onnx":
        return classify_facts(read_onnx_facts(path))
    if not path.exists():
        raise UnsupportedModelError(f"{path}: no such file or directory")
    what = f"a model of the runtime '{runtime}' says what it is once it is converted to ONNX"
    return Classification(ModelClass.OTHER, what)


def classify_facts(facts: OnnxFacts) -> Classification:
    """What kind of model a graph is. Pure."""
    count = facts.operators
    trees = _sum(count, _TREES)
    products = _sum(count, _PRODUCTS) + _sum(count, _MORE_PRODUCTS)
    convolutions = _sum(count, _CONVOLUTIONS)
    if trees and not convolutions and products <= trees:
        what = "ensemble" if trees == 1 else "ensembles"
        return Classification(ModelClass.TREES, f"it is made of {trees} {what} of trees")
    attentions, norms = facts.attentions + _sum(count, _ATTENTION), _norms(count)
    said = (
        f"{_several(products, 'matrix product')}, {_several(convolutions, 'convolution')}, "
        f"{_several(attentions, 'attention')} and {_several(norms, 'layer normalisation')}"
    )
    if attentions and products + attentions * _PRODUCTS_A_LAYER > convolutions:
        return Classification(ModelClass.TRANSFORMER, said)
    if convolutions and convolutions >= products:
        return Classification(ModelClass.CONV_NET, said)
    return Classification(ModelClass.OTHER, f"{said}: no known kind of network")


def _norms(count: Counter[str]) -> int:
    """Fused ones, else those written out: a mean, the mean of squares, its root."""
    fused = _sum(count, _NORMS) + _sum(count, _FUSED_NORMS) + _sum(count, _MORE_NORMS)
    squares = count["Pow"] + count["Mul"]
    return fused or min(count["ReduceMean"] // 2, count["Sqrt"], squares)


def _sum(count: Counter[str], names: tuple[str, ...]) -> int:
    return sum(count[name] for name in names)


def _several(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
