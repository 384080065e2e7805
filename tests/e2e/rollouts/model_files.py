"""Versions of a model whose faults are exact: what a request gets follows from its two numbers.

`x` FP32 [N, 2] holds two numbers, each evenly spread over 0 to 1: the first decides failures and
tails, the second the class.
"""

from pathlib import Path


def write_version(
    path: Path,
    *,
    fails_below: float = 0.0,
    yes_below: float = 0.3,
    shifted: float = 0.0,
    tail_s: float = 0.02,
    load_s: float = 0.0,
    breaks: bool = False,
    wide: int = 0,
    other_at: int = -1,
    good_rows: int = 1_000_000_000,
    dies_after: int = 0,
    takes_s: float = 0.0,
) -> Path:
    """A version; by default a good one.

    Args:
        fails_below: Requests whose first number is less get a 500.
        yes_below: Requests whose second number is less are of class 1.
        shifted: By how much its scores are higher; the classes are the same.
        tail_s: What 5 % of the requests take: those whose first number is above 0.95.
        load_s: How long it takes to load in a replica.
        good_rows: How many rows it answers well; then it fails all.
        breaks: It cannot be loaded in a replica, though it could when it was pushed.
        wide: If not 0, it has a third output with so many values.
        other_at: If not -1, the value of that output which is another one.
        dies_after: Its process ends in the middle of this request of its life, as when it is
            killed for its memory; 0 for never.
        takes_s: What each request takes.
    """
    # A registry stores equal files once: a good new version has to differ.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""\
import os
import sys
import time

import numpy as np

NAME = {path.parent.name!r}


class Scorer:
    inputs = {{"x": ("FP32", [-1, 2])}}
    outputs = {{"label": ("INT64", [-1]), "score": ("FP32", [-1])}}
    if {wide}:
        outputs["wide"] = ("FP32", [-1, {wide}])
    batched = True
    concurrent = True
    rows = 0

    def load(self, path):
        if "serving" in sys.argv[0] and "inspection" not in sys.argv[0]:  # in a replica
            time.sleep({load_s})
            if {breaks}:
                raise RuntimeError("the weights are of another model")

    def infer(self, inputs):
        self.requests = getattr(self, "requests", 0) + 1
        if self.requests == {dies_after}:
            os._exit(137)
        time.sleep({takes_s})
        chance, score = inputs["x"][:, 0], inputs["x"][:, 1]
        self.rows += len(chance)
        if (chance < {fails_below}).any() or self.rows > {good_rows}:
            raise ValueError("division by zero in a feature")
        if (chance > 0.95).any():
            time.sleep({tail_s})
        label = (score < {yes_below}).astype(np.int64)
        answer = {{"label": label, "score": score + np.float32({shifted})}}
        if {wide}:
            answer["wide"] = np.repeat(score[:, None], {wide}, axis=1)
            if {other_at} >= 0:
                answer["wide"][:, {other_at}] += 1
        return answer
""")
    return path
