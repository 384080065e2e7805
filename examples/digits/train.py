"""Train a small network on scikit-learn's handwritten digits and write it as ONNX.

    python examples/digits/train.py OUT_DIR

OUT_DIR then holds `digits.onnx` (input `pixels`, FP32 [N, 64], values 0 to 16; outputs `label` and
`probabilities`), `test.npz` (`inputs` and `labels` of the rows that training never saw) and
`sample.csv` (eight of those rows). It takes a few seconds and needs no network.
"""

import sys
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

SEED = 7


def main(out: Path) -> None:
    """Train, say how good the model is, write the files."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    model = make_pipeline(
        MinMaxScaler(),
        MLPClassifier(hidden_layer_sizes=(64,), max_iter=500, random_state=SEED),
    )
    model.fit(train_x, train_y)

    # zipmap=False: probabilities as one tensor instead of a list of dictionaries, which no
    # inference protocol can carry.
    onnx_model = to_onnx(
        model,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
        target_opset=17,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "digits.onnx").write_bytes(onnx_model.SerializeToString())
    np.savez(out / "test.npz", inputs=test_x, labels=test_y)
    np.savetxt(out / "sample.csv", test_x[:8], delimiter=",", fmt="%g")
    print(f"accuracy {model.score(test_x, test_y):.3f} on {len(test_y)} held-out rows")
    print(f"wrote {out / 'digits.onnx'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  # the script and OUT_DIR
        sys.exit("usage: python train.py OUT_DIR")
    main(Path(sys.argv[1]))
