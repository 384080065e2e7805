"""Two ways to run a model are measured, and the second one is kept unless the first is worth it."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from headrace.core import RuntimeFailedError, Tensors
from headrace.core.devices import DeviceUse
from headrace.runtimes.onnx.runtime import is_worth_it, without

INPUTS: Tensors = {"x": np.zeros((1, 2), np.float32)}


@dataclass
class Stopwatch:
    """Runs that take as long as they are told, and the clock that shows it."""

    now: float = 0.0
    runs: list[str] = field(default_factory=list)

    def run(self, name: str, inputs: Tensors, took_s: float) -> Tensors:
        self.runs.append(name)
        # The first run sets things up, and others are disturbed now and then.
        disturbed = self.runs.count(name) in {1, 3}
        self.now += took_s * (50 if disturbed else 1)
        return inputs


@pytest.mark.parametrize(
    ("special_s", "plain_s", "worth_it"),
    [(98e-6, 9e-6, False), (5e-3, 14e-3, True), (9.5e-3, 10e-3, False), (3.0, 9.0, True)],
)
def test_the_faster_way_is_kept(special_s: float, plain_s: float, *, worth_it: bool) -> None:
    watch = Stopwatch()

    found, said = is_worth_it(
        lambda inputs: watch.run("special", inputs, special_s),
        lambda inputs: watch.run("plain", inputs, plain_s),
        INPUTS,
        clock=lambda: watch.now,
    )

    assert found is worth_it
    assert f"takes {special_s * 1e6:.0f} µs" in said
    assert said.endswith(f" {plain_s * 1e6:.0f}")


def test_what_cannot_be_measured_stays_as_it_is() -> None:
    def fails(inputs: Tensors) -> Tensors:
        msg = f"no {next(iter(inputs))}"
        raise RuntimeFailedError(msg)

    assert is_worth_it(fails, fails, INPUTS) == (True, "it could not be measured: no x")


def test_what_was_not_worth_it_is_told_with_the_others() -> None:
    use = DeviceUse(asked="auto", used=("OpenVINO", "CPU"), unused={"Azure": "never"})

    assert without(use, "OpenVINO", "slow") == DeviceUse(
        asked="auto", used=("CPU",), unused={"Azure": "never", "OpenVINO": "slow"}
    )
