"""Kafka keeps every broker's promises: what stands in for it here, and a cluster if one is named."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.contract.brokers.kafka_servers import BOOTSTRAP, Server, noida, tansu
from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract

NOIDA: Final = "noida, Kafka-compatible stand-in"
TANSU: Final = "tansu, Kafka-compatible stand-in"
CLUSTER: Final = "a cluster"

_STAYS: Final = "noida keeps a static member for good that is away, whatever the session's timeout"
_NOIDA_CANNOT: Final = {
    "test_what_is_done_stays_done_and_what_is_not_comes_again": _STAYS,
    "test_members_share_what_comes_and_nothing_is_lost_when_one_goes": _STAYS,
    "test_a_group_is_put_elsewhere_while_no_member_runs": _STAYS,
    "test_what_is_done_while_a_place_is_given_away_is_not_read_again": (
        "noida takes no offsets of a member that is about to give places away"
    ),
}
_TANSU_CANNOT: Final = {}


@pytest.fixture(scope="module")
def noida_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with noida(tmp_path_factory.mktemp("noida")) as server:
        yield server


@pytest.fixture(scope="module")
def tansu_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tansu(tmp_path_factory.mktemp("tansu")) as server:
        yield server


@pytest.mark.e2e
class TestKafka(BrokerContract):
    @pytest.fixture(params=[NOIDA, TANSU, CLUSTER])
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
        if request.param == NOIDA:
            server: Server = request.getfixturevalue("noida_server")
            return Rig(
                url=f"kafka://127.0.0.1:{server.port}?partition.assignment.strategy=range",
                home=tmp_path,
                session_timeout_s=6.0,
                cannot=_NOIDA_CANNOT,
            )
        if request.param == TANSU:
            server = request.getfixturevalue("tansu_server")
            return Rig(
                url=f"kafka://127.0.0.1:{server.port}?membership=dynamic&fetch.wait.max.ms=5",
                home=tmp_path,
                session_timeout_s=6.0,
                settles_s=30.0,
                cannot=_TANSU_CANNOT,
            )
        if BOOTSTRAP not in os.environ:
            pytest.skip(f"{BOOTSTRAP} names no cluster")
        return Rig(
            url=f"kafka://{os.environ[BOOTSTRAP]}",
            home=tmp_path,
            session_timeout_s=6.0,
            settles_s=30.0,
        )
