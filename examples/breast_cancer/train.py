"""Train two models on scikit-learn's breast cancer data and write both as ONNX.

    python examples/breast_cancer/train.py OUT_DIR

OUT_DIR then holds `logistic.onnx` and `boosted.onnx` (input `features`, FP32 [N, 30]; outputs
`label` and `probabilities`: malignant, benign), and `test.npz` (`inputs` and `labels` of the rows
that training never saw). Two models of one question: material for a traffic split.
"""

import sys
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED = 7


def main(out: Path) -> None:
    """Train, say how good the models are, write the files."""
    features, labels = load_breast_cancer(return_X_y=True)
    features = features.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        features, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    out.mkdir(parents=True, exist_ok=True)
    models = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "boosted": GradientBoostingClassifier(random_state=SEED),
    }
    for name, model in models.items():
        model.fit(train_x, train_y)
        onnx_model = to_onnx(
            model,
            initial_types=[("features", FloatTensorType([None, features.shape[1]]))],
            options={"zipmap": False},
            target_opset=17,
        )
        (out / f"{name}.onnx").write_bytes(onnx_model.SerializeToString())
        print(f"{name}: accuracy {model.score(test_x, test_y):.3f} on {len(test_y)} held-out rows")
    np.savez(out / "test.npz", inputs=test_x, labels=test_y)


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  # the script and OUT_DIR
        sys.exit("usage: python train.py OUT_DIR")
    main(Path(sys.argv[1]))
