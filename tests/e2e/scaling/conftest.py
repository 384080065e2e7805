"""A system, and a model that takes its time without using the machine."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.system.steady import SteadyLoad

RUN_S = 0.05
MakeLoad = Callable[[System, float], SteadyLoad]


@pytest.fixture
def slow_model(tmp_path: Path) -> Path:
    """One request at a time, each for `RUN_S`: 20 a second at most."""
    return write_model(tmp_path / "slow" / "model.py")


def write_model(path: Path, *, load_s: float = 0.0, says: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""\
import sys
import time

import numpy as np


class Slow:
    inputs = {{"x": ("FP32", [-1, 1])}}
    outputs = {{"y": ("FP32", [-1, 1])}}

    def load(self, path):
        if "serving" in sys.argv[0] and "inspection" not in sys.argv[0]:  # in a replica
            time.sleep({load_s})

    def infer(self, inputs):
        time.sleep({RUN_S})
        return {{"y": inputs["x"] * {says}}}
""")
    return path


DOCUMENT = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}


def load_on(system: System, *, rate: float, name: str = "slow") -> SteadyLoad:
    """`rate` requests a second to an endpoint, by the gateway."""
    body = json.dumps(DOCUMENT).encode()
    address = system.where().http_url.removeprefix("http://")
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nhost: {address}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return SteadyLoad(address, [head.encode() + body], rate=rate)
