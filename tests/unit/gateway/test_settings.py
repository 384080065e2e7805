from pathlib import Path
from typing import Any

import pytest

from headrace.core import InvalidArgumentError
from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import EndpointRoute, MirrorTarget, RevisionTarget, check_socket_path
from headrace.gateway.settings import parse_address
from tests.unit.gateway.arbitrary import gateway_settings


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("unix:/run/a.sock", Path("/run/a.sock")),
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("[::1]:80", ("::1", 80)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
    ],
)
def test_an_address_is_a_socket_path_or_host_and_port(address: str, parsed: object) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    ["", "unix:", "unix:relative.sock", "host", ":80", "host:", "host:0", "h:65536", "h:x"],
)
def test_what_is_no_address_is_refused_with_its_text(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="address"):
        parse_address(address)


def test_a_host_name_is_refused_because_envoy_looks_none_up() -> None:
    with pytest.raises(InvalidArgumentError, match="'localhost' is not an IP address"):
        parse_address("localhost:80")


def test_a_socket_path_that_linux_would_not_take_is_refused() -> None:
    check_socket_path(Path("/" + "a" * 106))

    with pytest.raises(InvalidArgumentError, match="108 bytes, more than the 107"):
        check_socket_path(Path("/" + "a" * 107))


def test_a_socket_path_is_measured_in_bytes_not_letters() -> None:
    with pytest.raises(InvalidArgumentError, match="bytes"):
        parse_address("unix:/" + "ü" * 60)


def test_weights_that_do_not_sum_to_100_are_refused() -> None:
    revision = RevisionTarget(version="1", replicas=(), weight=90)

    with pytest.raises(InvalidArgumentError, match="'fraud' sum to 90, not 100"):
        EndpointRoute(name="fraud", arms=(revision,)).check()


@pytest.mark.parametrize("weight", [-1, 101])
def test_a_weight_outside_0_to_100_is_refused(weight: int) -> None:
    with pytest.raises(InvalidArgumentError, match="weight of version 1"):
        RevisionTarget(version="1", replicas=(), weight=weight).check()


def test_a_version_named_twice_is_refused() -> None:
    revision = RevisionTarget(version="1", replicas=(), weight=50)

    with pytest.raises(InvalidArgumentError, match="a version twice"):
        EndpointRoute(name="m", arms=(revision, revision)).check()


def test_a_replica_named_twice_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="a replica twice"):
        RevisionTarget(version="1", replicas=("10.0.0.1:1", "10.0.0.1:1"), weight=100).check()


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a~b", ".a", "a" * 129, "a\n"])
def test_an_endpoint_name_that_could_leave_its_route_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name"):
        EndpointRoute(name=name, arms=()).check()


@pytest.mark.parametrize("version", ["", "x", "1~2", "-1", "1.0"])
def test_a_version_that_is_no_whole_number_is_refused(version: str) -> None:
    with pytest.raises(InvalidArgumentError, match="version"):
        RevisionTarget(version=version, replicas=(), weight=100).check()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_timeout_that_is_no_duration_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        EndpointRoute(name="m", arms=(), timeout_s=timeout_s).check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http_port", 0),
        ("grpc_port", 65536),
        ("max_body_bytes", 0),
        ("max_body_bytes", 2**31),
        ("concurrency", 0),
        ("log_level", "loud"),
        ("control_address", "nowhere"),
        ("control_address", "localhost:80"),
        ("host", "localhost"),
        ("run_dir", Path("/" + "d" * 100)),
    ],
)
def test_settings_that_envoy_would_not_take_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError):
        gateway_settings(**{name: value})


def test_one_port_for_both_is_bound_once() -> None:
    assert gateway_settings(http_port=9, grpc_port=9).ports == (9,)


def test_a_relative_run_directory_becomes_absolute() -> None:
    assert gateway_settings(run_dir=Path("run")).admin_socket.is_absolute()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "http://",
        "h:80",
        "http://h:0",
        "http://h:99999",
        "http://u:p@h",
        "http://h?x",
        "http://h#x",
        "http://[",
    ],
)
def test_an_upstream_has_a_url_that_can_be_asked(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="upstream"):
        RevisionTarget(version="1", replicas=(), weight=1, upstream=UpstreamSpec(url=url)).check()


def test_an_arm_has_replicas_or_an_upstream() -> None:
    upstream = UpstreamSpec(url="http://h")

    with pytest.raises(InvalidArgumentError, match="set only one"):
        RevisionTarget(version="1", replicas=("10.0.0.1:1",), weight=1, upstream=upstream).check()


@pytest.mark.parametrize("role", ["Base", "a b", "~", "1"])
def test_a_role_is_a_word(role: str) -> None:
    with pytest.raises(InvalidArgumentError, match="contains invalid characters"):
        RevisionTarget(version="1", replicas=(), weight=1, role=role).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sticky": StickySpec(header="x_user")}, "not a valid name"),
        ({"sticky": StickySpec(cookie="a=b")}, "not a valid name"),
        ({"split_id": "a b"}, "split_id"),
        ({"split_id": "%REQ(x)%"}, "split_id"),
        ({"hold_s": -1.0}, "hold_s"),
        ({"mirror": MirrorTarget(key="7", percent=5)}, "mirrors to 7"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        EndpointRoute(name="m", arms=(), **fields).check()


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_share_of_copies_is_a_share(percent: int) -> None:
    with pytest.raises(InvalidArgumentError, match="percent"):
        EndpointRoute(name="m", arms=(), mirror=MirrorTarget(key="1", percent=percent)).check()


def test_an_arm_is_found_by_its_key() -> None:
    arm = RevisionTarget(version="1", replicas=(), weight=100, role="baseline")

    assert EndpointRoute(name="m", arms=(arm,)).arm("1~baseline") is arm
