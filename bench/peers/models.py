"""The models that every server here serves, and the requests they are asked with.

The same file for all; each gives one FP32 output, so that nobody answers more than another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from bench import minilm, models, text
from bench.bare import pad

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

TREE_FEATURES: Final = 30
ROWS: Final = {"mlp": 64, "gbdt": 64, "minilm": 512, "busy": 8, "resnet": 4}
"""Different requests of each model, sent in turn."""
BATCHES: Final = {"mlp": 32, "gbdt": 32, "minilm": 1, "busy": 32, "resnet": 1}
"""The largest batch of a peer's. 1 where a batch costs a core as much as its rows do, and padding
and waiting come on top: peers do better without."""
TRIED: Final[Mapping[str, Sequence[int]]] = {"minilm": (1, 4)}
"""Where that depends on the processor: the sizes of which a peer gets the better."""
NAMES: Final = tuple(ROWS)
ENCODERS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model file, and one-row requests to it. `tried`: sizes to choose `max_batch` from."""

    name: str
    path: Path
    rows: Sequence[Tensors]
    max_batch: int
    tried: Sequence[int] = ()

    def expected(self, row: Tensors) -> dict[str, Array]:
        """What bare ONNX Runtime answers."""
        return models.run_bare(self.path, row)


def load(name: str, cache: Path) -> Model:
    """One of `NAMES`, made now if its file is missing.

    Raises:
        RuntimeError: It is downloaded, and cannot be.
    """
    path = cache / f"{name}.onnx"
    if name == "minilm":
        path = minilm.fetch(cache) / "minilm.onnx"
    elif not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        onnx.save(_BUILD[name](), unfinished)
        unfinished.rename(path)
    return Model(
        name=name,
        path=path,
        rows=rows(name),
        max_batch=BATCHES[name],
        tried=TRIED.get(name, ()),
    )


def rows(name: str) -> list[Tensors]:
    """The requests, the same in every run."""
    count = ROWS[name]
    if name == "minilm":
        return [pad([tokens]) for tokens in text.drawn_rows(count)]
    random = np.random.default_rng(models.SEED)
    if name == "resnet":
        # What a decoded picture is: bytes over 255.
        pixels = random.integers(0, 256, (count, 1, *models.IMAGE)).astype(np.float32)
        return [{"input": one / np.float32(255)} for one in pixels]
    width = TREE_FEATURES if name == "gbdt" else models.FEATURES
    values = random.standard_normal((count, 1, width)).astype(np.float32)
    return [{"input": one} for one in values]


def gbdt() -> onnx.ModelProto:
    """100 trees of depth 5: `input` [N, 30] to `probabilities` [N, 2]."""
    # Only needed where the file is missing, and slow to import.
    from skl2onnx import to_onnx  # noqa: PLC0415
    from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415
    from sklearn.datasets import make_classification  # noqa: PLC0415
    from sklearn.ensemble import GradientBoostingClassifier  # noqa: PLC0415

    x, y = make_classification(
        4_000, TREE_FEATURES, n_informative=12, weights=[0.967], random_state=models.SEED
    )
    trees = GradientBoostingClassifier(n_estimators=100, max_depth=5, random_state=0).fit(x, y)
    takes = [("input", FloatTensorType([None, TREE_FEATURES]))]
    model: onnx.ModelProto = to_onnx(
        trees, initial_types=takes, options={"zipmap": False}, target_opset=17
    )
    (label,) = (one for one in model.graph.output if one.name == "label")
    model.graph.output.remove(label)
    onnx.checker.check_model(model)
    return model


_BUILD: Final[Mapping[str, Callable[[], onnx.ModelProto]]] = {
    "mlp": models.mlp,
    "busy": models.busy,
    "gbdt": gbdt,
    "resnet": models.resnet,
}
