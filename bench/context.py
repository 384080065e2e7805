"""What every suite is given: cores, models, a scratch folder, how long to measure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import models
from bench.load import closed
from bench.machine import Placement
from bench.payloads import Payload, write_payloads
from bench.windows import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """How to measure.

    `home` is scratch and goes away; `cache` keeps downloads; `data` holds labelled text, if given.
    """

    placement: Placement
    home: Path
    cache: Path
    data: Path | None
    models: dict[str, Path]
    quick: bool

    @property
    def rounds(self) -> int:
        """How often every arm is measured."""
        return 2 if self.quick else 5

    @property
    def seconds(self) -> float:
        """How long one window is."""
        return 1.0 if self.quick else 3.0

    def inside(self, home: Path) -> "Context":
        """The same with another scratch folder."""
        return replace(self, home=home)

    def load(
        self, payloads: Sequence[Payload], *, name: str, connections: int, seconds: float = 0
    ) -> closed.Load:
        """Closed-loop load from the load's core."""
        return closed.Load(
            index=write_payloads(list(payloads), self.home / f"payloads-{name}"),
            connections=connections,
            seconds=seconds or self.seconds,
            cores=self.placement.load,
        )


def http_arm(name: str, port: int, load: closed.Load) -> Arm:
    """An arm under closed-loop HTTP load, warmed up by its first, unmeasured second."""
    warm_up = closed.Load(
        index=load.index, connections=load.connections, seconds=1.0, cores=load.cores
    )
    closed.measure(port, warm_up)
    return Arm(name=name, measure=lambda: closed.measure(port, load))


def one_row() -> dict[str, models.Array]:
    """One row for the small models, the same in every run."""
    random = np.random.default_rng(models.SEED)
    return {"input": random.standard_normal((1, models.FEATURES)).astype(np.float32)}
