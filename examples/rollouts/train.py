"""Train three versions of one model: one to begin with, a good one, and one that knows too little.

    python examples/rollouts/train.py OUT_DIR

OUT_DIR then holds `first.onnx`, `better.onnx`, `broken.onnx` (all take `pixels`, FP32 [N, 64], and
answer `label` and `probabilities`) and `test.npz` with rows to ask about.
"""

import sys
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import train_test_split

SEED = 7
LARGEST_KNOWN = 4


def main(out: Path) -> None:
    """Train, say how good the versions are, write the files."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    out.mkdir(parents=True, exist_ok=True)
    known = train_y <= LARGEST_KNOWN
    for name, trees, x, y in (
        ("first", 20, train_x, train_y),
        ("better", 100, train_x, train_y),
        ("broken", 20, train_x[known], train_y[known]),
    ):
        forest = ExtraTreesClassifier(trees, random_state=SEED).fit(x, y)
        model = to_onnx(
            forest,
            initial_types=[("pixels", FloatTensorType([None, 64]))],
            options={"zipmap": False},
            target_opset=17,
        )
        (out / f"{name}.onnx").write_bytes(model.SerializeToString())
        print(f"{name}: accuracy {forest.score(test_x, test_y):.3f}")
    np.savez(out / "test.npz", inputs=test_x, labels=test_y)


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  # the script and OUT_DIR
        sys.exit("usage: python train.py OUT_DIR")
    main(Path(sys.argv[1]))
