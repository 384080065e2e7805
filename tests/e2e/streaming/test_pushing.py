"""Features that a worker's process pushes: a real model, a real log, a real store."""

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.core import ReplicaSettings
from headrace.core.spec.stream_parts import (
    Function,
    StreamFormatSpec,
    StreamWindowSpec,
    StreamWindowsSpec,
)
from headrace.features import (
    FeatureReader,
    applied_definitions,
    apply_definitions,
    open_online_store,
)
from headrace.streaming.records import NewRecord
from headrace.streaming.settings import PushSettings
from headrace.testing import models
from tests.contract.brokers.rig import everything
from tests.e2e.streaming.workers import (
    DEAD,
    IN,
    OUT,
    features_spec,
    killed_at_random,
    opened,
    settings,
)

pytestmark = pytest.mark.e2e


def model(folder: Path, number: int) -> ReplicaSettings:
    path = folder / f"{number}.onnx"
    path.write_bytes(models.matmul(seed=number))
    return ReplicaSettings(model_name="m", model_version=str(number), path=str(path))


def payments(count: int) -> list[NewRecord]:
    now_s = time.time() // 3600 * 3600 - 3600  # noqa: TID251  # windows begin at a whole hour
    return [
        NewRecord(
            topic=IN,
            key=b"%d" % (at % 20),
            value=msgspec.json.encode(
                {"card": at % 20, "amount": at / 4, "x": [1.0, 2.0, 3.0, 4.0]}
            ),
            timestamp_s=now_s + at / 1000,
        )
        for at in range(count)
    ]


def spending(home: Path) -> list[list[float]]:
    """What the online store has: the last amount and the hour's sum of each card."""
    service = applied_definitions(home).service("fraud")
    store = open_online_store(f"sqlite:///{home}/features/online/online.db", read_only=True)
    found = FeatureReader(service, store).read({"card": np.arange(20)})
    store.close()
    return [[float(one) for one in found.columns[name]] for name in ("last", "spend_1h")]


@pytest.mark.long
@pytest.mark.parametrize("scores", [False, True], ids=["only pushed", "pushed and scored"])
def test_records_become_features_once_whatever_is_killed(tmp_path: Path, *, scores: bool) -> None:
    count = 6000
    (tmp_path / "features.yaml").write_text(features_spec("spend_1h", "FP64"))
    apply_definitions(tmp_path / "features.yaml", tmp_path)
    broker = opened(tmp_path)
    bad = NewRecord(topic=IN, key=b"1", value=b'{"card": "one", "amount": 1, "x": [1, 2, 3, 4]}')
    records = payments(count)
    last_s = records[-1].timestamp_s
    broker.send([*records, msgspec.structs.replace(bad, timestamp_s=last_s)])
    told = settings(
        tmp_path,
        None,
        sink=OUT if scores else "",
        format=StreamFormatSpec(),
        features=PushSettings(view="spending", fields={"last": "amount"}),
        windows=StreamWindowsSpec(
            windows=[
                StreamWindowSpec(
                    name="spend_1h", size_s=3600, function=Function.SUM, field="amount", key="card"
                )
            ],
            checkpoint_s=0.05,
        ),
        max_batch_size=16,
    )
    if scores:
        told = msgspec.structs.replace(told, model=model(tmp_path, 1))
    assert len(list(killed_at_random(tmp_path, told, broker, kills=3, seed=3))) == 3
    letters = everything(broker, DEAD)
    answered = {one.key for one in everything(broker, OUT)} if scores else set()
    broker.close()

    sums = [sum(at / 4 for at in range(card, count, 20)) for card in range(20)]
    assert spending(tmp_path) == [[(count - 20 + card) / 4 for card in range(20)], sums]
    assert {one.value for one in letters} == {bad.value}
    assert len(answered) == (20 if scores else 0)
