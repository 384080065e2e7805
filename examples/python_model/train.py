"""Average scikit-learn's handwritten digits and write a Python model beside the averages.

    python examples/python_model/train.py OUT_DIR

OUT_DIR/nearest_digit/ then holds `model.py` (a copy of the one beside this script) and the
`centroids.npz` that it loads; OUT_DIR/test.npz the rows that were not averaged.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main(out: Path) -> None:
    """Train, say how good the model is, write the files."""
    pixels, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels.astype(np.float32), labels, test_size=0.2, random_state=7, stratify=labels
    )
    centroids = np.stack([train_x[train_y == digit].mean(axis=0) for digit in range(10)])
    distances = np.linalg.norm(test_x[:, None, :] - centroids[None, :, :], axis=2)
    accuracy = (distances.argmin(axis=1) == test_y).mean()
    model = out / "nearest_digit"
    model.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("model.py"), model / "model.py")
    np.savez(model / "centroids.npz", centroids=centroids)
    np.savez(out / "test.npz", inputs=test_x, labels=test_y)
    print(f"accuracy {accuracy:.3f} on {len(test_y)} held-out rows")


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  # the script and OUT_DIR
        sys.exit("usage: python train.py OUT_DIR")
    main(Path(sys.argv[1]))
