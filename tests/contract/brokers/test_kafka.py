"""Kafka keeps every broker's promises: what stands in for it, and a cluster if one is named."""

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
_WRONG_ENDS: Final = "tansu counts batches where it should count records, so that it knows no end"
_TANSU_CANNOT: Final = {
    "test_ends_tell_how_much_there_is": _WRONG_ENDS,
    "test_a_time_has_an_offset": _WRONG_ENDS,
    "test_a_new_group_begins_at_the_latest_record": _WRONG_ENDS,
    "test_lag_counts_what_is_not_done": _WRONG_ENDS,
    "test_nothing_is_delivered_and_nothing_done_without_harm": (
        "tansu forgets the offsets of a transaction that writes no records"
    ),
    "test_what_cannot_be_written_moves_nothing": "tansu shows records of aborted transactions",
    "test_killed_at_random_moments_nothing_is_lost_and_exactly_once_nothing_doubled": (
        "tansu shows records of aborted transactions"
    ),
    "test_a_member_that_was_replaced_can_go_on_no_more": (
        "nobody is replaced by name where membership is dynamic"
    ),
}


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
    @pytest.fixture(autouse=True)
    def _skipped(self, request: pytest.FixtureRequest) -> None:
        said = getattr(request.node, "callspec").params  # noqa: B009  # pytest has no type for it
        if said["rig"] == NOIDA and said.get("heir") == "two":
            pytest.skip(_STAYS)

    @pytest.fixture(params=[NOIDA, TANSU, *([CLUSTER] if BOOTSTRAP in os.environ else [])])
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
        if request.param == NOIDA:
            server: Server = request.getfixturevalue("noida_server")
            return Rig(
                url=f"kafka://127.0.0.1:{server.port}?partition.assignment.strategy=range",
                home=tmp_path,
                session_timeout_s=6.0,
                cannot=_NOIDA_CANNOT,
                stop=server.stop,
                start=server.start,
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
        return Rig(
            url=f"kafka://{os.environ[BOOTSTRAP]}",
            home=tmp_path,
            session_timeout_s=6.0,
            settles_s=30.0,
        )
