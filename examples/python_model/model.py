"""A model in plain Python: the digit whose average image is nearest."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from headrace.core import InvalidArgumentError


class NearestDigit:
    """Answers the nearest centroid and how far it is."""

    inputs: ClassVar = {"pixels": ("FP32", [-1, 64])}  # -1: any size; axis 0 is the batch
    outputs: ClassVar = {"label": ("INT64", [-1]), "distance": ("FP32", [-1])}
    batched = True  # rows are independent: Headrace may run requests of several callers together

    def load(self, path: Path) -> None:
        """Called once, before the first request, with the directory this file lies in."""
        self.centroids = np.load(path / "centroids.npz")["centroids"]

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One batch; names, datatypes and shapes of `inputs` were checked."""
        pixels = inputs["pixels"]
        if pixels.min() < 0:
            msg = "pixels are counts of ink, from 0 to 16; got a negative one"
            raise InvalidArgumentError(msg)  # the caller's fault, and the caller hears why
        distances = np.linalg.norm(pixels[:, None, :] - self.centroids[None, :, :], axis=2)
        return {
            "label": distances.argmin(axis=1).astype(np.int64),
            "distance": distances.min(axis=1).astype(np.float32),
        }
