"""Model class and facts of an ONNX file, read from its protobuf without the weights."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.core import UnsupportedModelError
from headrace.optimize.candidate import ModelClass
from headrace.runtimes.file_bytes import (
    BrokenFileError,
    Field,
    Source,
    fields,
    inside,
    numbers,
    signed,
    text,
)
from headrace.runtimes.onnx_file import find_onnx_file

_WITH_GRAPHS: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""No other operator has a graph inside; trees have lists in which one would look for ever."""
_QUANTIZED: Final = ("QLinear", "QuantizeLinear", "DequantizeLinear", "MatMulInteger")
_ALSO_QUANTIZED: Final = ("ConvInteger", "DynamicQuantize", "MatMulNBits", "QGemm", "QAttention")
_SOFTMAX: Final = frozenset({"Softmax", "QLinearSoftmax"})
_PASS_ON: Final = frozenset(
    {
        *("Cast", "Dropout", "Identity", "Where", "Mul", "Reshape", "Transpose"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    }
)
"""What may stand between the shares of attention and what they are multiplied with."""
_MIX: Final = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "Einsum"})
_MOST_DEPTH: Final = 16
_MOST_NAMES: Final = 4096
_TEXT: Final = 8
_HALF: Final = frozenset({10, 16})
_SINGLE: Final = 1
_ORT_MARK: Final = b"ORTM"
_ITEM_BITS: Final = {2: 8, 3: 8, 4: 16, 5: 16, 7: 64, 9: 8, 10: 16, 11: 64, 13: 64, 16: 16}
"""By element type, where it is not 32; of what is smaller than a byte more is counted."""


@dataclass(slots=True)
class OnnxFacts:
    """What is in a graph, in the graphs inside of it, and in its functions.

    `operators`: how many nodes there are of each kind. `attentions`: how often the result of a
    softmax is multiplied, of what is not fused. `opset`: of ONNX's own operators. `weights_bytes`:
    of all constants, also those that lie in other files, whose names are `external`. `types`: of
    the constants, by ONNX's numbers, how many elements. `takes_text`: whether an input is made of
    strings.
    """

    operators: Counter[str] = field(default_factory=Counter)
    attentions: int = 0
    opset: int = 0
    ir_version: int = 0
    weights_bytes: int = 0
    external: set[str] = field(default_factory=set)
    types: Counter[int] = field(default_factory=Counter)
    takes_text: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether somebody has made it compute in small integers already."""
        return any(name.startswith((*_QUANTIZED, *_ALSO_QUANTIZED)) for name in self.operators)

    @property
    def is_half(self) -> bool:
        """Whether most of its weights are numbers of 16 bits."""
        half = sum(self.types[kind] for kind in _HALF)
        return half > self.types[_SINGLE]

    @property
    def has_branches(self) -> bool:
        """Whether parts of it run on a condition, or again and again."""
        return any(self.operators[name] for name in _WITH_GRAPHS)


def read_onnx_facts(path: Path) -> OnnxFacts:
    """The facts of an ONNX file, or of the only one in a directory.

    Raises:
        UnsupportedModelError: There is none, or it is damaged.
    """
    file = find_onnx_file(path)
    try:
        with Source(file) as source:
            if source.head(8)[4:] == _ORT_MARK:
                msg = f"{file}: is in ONNX Runtime's own format, which nothing rewrites; "
                raise UnsupportedModelError(f"{msg}name the .onnx file that it was made of")
            return _read_model(source)
    except (BrokenFileError, OSError) as error:
        raise UnsupportedModelError(f"{file}: {error}") from error


def _read_model(source: Source) -> OnnxFacts:
    found = OnnxFacts()
    has_graph = False
    for one in fields(source):
        match one.number:
            case 1:
                found.ir_version = signed(one.value)
            case 7:
                has_graph = True
                _Graph(source, found, depth=0).read(one)
            case 8:
                _read_opset(source, one, found)
            case 25:
                _Graph(source, found, depth=1).read_function(one)
    if not has_graph:
        raise BrokenFileError("is truncated or damaged: it holds no graph")
    return found


def _read_opset(source: Source, one: Field, found: OnnxFacts) -> None:
    domain, version = "", 0
    for part in inside(source, one):
        if part.number == 1:
            domain = text(source, part)
        else:
            version = signed(part.value)
    if domain in {"", "ai.onnx"}:
        found.opset = max(found.opset, version)


class _Graph:
    """One graph, or one function, as it is read."""

    def __init__(self, source: Source, found: OnnxFacts, *, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise BrokenFileError(f"nests graphs deeper than {_MOST_DEPTH}")
        self._source = source
        self._found = found
        self._depth = depth
        self._shares: set[str] = set()
        """Tensors that came of a softmax."""

    def read(self, graph: Field) -> None:
        """Count what is in a `GraphProto`."""
        initial: set[str] = set()
        taken: list[tuple[str, int]] = []
        for one in inside(self._source, graph):
            match one.number:
                case 1:
                    self._read_node(one)
                case 5:
                    initial.add(_read_tensor(self._source, one, self._found))
                case 11 if self._depth == 0 and len(taken) < _MOST_NAMES:
                    taken.append(_read_value(self._source, one))
        self._found.takes_text |= any(kind == _TEXT and name not in initial for name, kind in taken)

    def read_function(self, function: Field) -> None:
        """Count what is in a `FunctionProto`, whose nodes are its field 7."""
        for one in inside(self._source, function):
            if one.number == 7:  # noqa: PLR2004  # FunctionProto.node
                self._read_node(one)

    def _read_node(self, node: Field) -> None:
        parts = list(inside(self._source, node))
        kind = next((self._text(one) for one in parts if one.number == 4), "")  # noqa: PLR2004  # op_type
        self._found.operators[kind] += 1
        self._follow(kind, parts)
        if kind != "Constant" and kind not in _WITH_GRAPHS:
            return
        for attribute in (one for one in parts if one.number == 5):  # noqa: PLR2004  # attribute
            for one in inside(self._source, attribute):
                if one.number in {6, 11}:  # g, graphs
                    _Graph(self._source, self._found, depth=self._depth + 1).read(one)
                elif one.number == 5 and kind == "Constant":  # noqa: PLR2004  # t
                    _read_tensor(self._source, one, self._found)

    def _follow(self, kind: str, parts: list[Field]) -> None:
        """Nodes come in an order in which each follows what it takes."""
        if kind in _SOFTMAX:
            comes_of_softmax = True
        elif kind in _PASS_ON or kind in _MIX:
            comes_of_softmax = any(
                one.number == 1 and self._text(one) in self._shares for one in parts
            )
        else:
            return
        if comes_of_softmax and kind in _MIX:
            self._found.attentions += 1
        elif comes_of_softmax:
            self._shares.update(self._text(one) for one in parts if one.number == 2)  # noqa: PLR2004  # output

    def _text(self, one: Field) -> str:
        return text(self._source, one, _MOST_NAMES)


def _read_tensor(source: Source, tensor: Field, found: OnnxFacts) -> str:
    """The tensor's name."""
    elements, kind, name = 1, 0, ""
    for one in inside(source, tensor):
        match one.number:
            case 1:
                for size in numbers(source, one):
                    elements = min(elements * max(size, 0), 1 << 60)
            case 2:
                kind = one.value
            case 8:
                name = text(source, one, _MOST_NAMES)
            case 13:
                found.external.update(_location(source, one))
    found.types[kind] += elements
    found.weights_bytes += elements * _ITEM_BITS.get(kind, 32) // 8
    return name


def _location(source: Source, entry: Field) -> Iterator[str]:
    parts = {one.number: text(source, one, 4096) for one in inside(source, entry)}
    if parts.get(1) == "location":
        yield parts.get(2, "")


def _read_value(source: Source, value: Field) -> tuple[str, int]:
    """Name and element type of an input; 0 for what is no tensor."""
    name, kind = "", 0
    for one in inside(source, value):
        if one.number == 1:
            name = text(source, one, _MOST_NAMES)
        elif one.number == 2:  # noqa: PLR2004  # ValueInfoProto.type
            for tensor in (part for part in inside(source, one) if part.number == 1):
                kind = next((p.value for p in inside(source, tensor) if p.number == 1), 0)
    return name, kind


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
