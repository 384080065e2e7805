"""What is missing for an engine is told, with the way out."""

import importlib.util

import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.jobs.engines.cluster import one_line
from headrace.jobs.engines.local import LocalEngine
from headrace.jobs.engines.opening import EngineName, open_engine
from headrace.jobs.engines.ray import check_address
from headrace.jobs.engines.spark import master_of


def test_one_machine_takes_its_cores_or_as_many_workers_as_are_asked_for() -> None:
    some = open_engine(EngineName.LOCAL, address="", workers=None, cores=6, source="x")
    few = open_engine(EngineName.LOCAL, address="", workers=2, cores=6, source="x")

    assert (some, few) == (LocalEngine(workers=6), LocalEngine(workers=2))


def test_one_machine_has_no_address() -> None:
    with pytest.raises(InvalidArgumentError, match="say --engine ray or --engine spark"):
        open_engine(EngineName.LOCAL, address="auto", workers=None, cores=1, source="x")


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("spark", "pyspark")])
def test_what_is_not_installed_is_named(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(FailedPreconditionError, match=rf"pip install 'headrace\[batch,{name}\]'"):
        open_engine(EngineName(name), address="", workers=None, cores=1, source="x")


@pytest.mark.parametrize(
    ("address", "workers", "master"),
    [
        ("local", None, "local[*,4]"),
        ("local", 3, "local[3,4]"),
        ("local[2]", 3, "local[2,4]"),
        ("local[*]", None, "local[*,4]"),
        ("local[2, 7]", None, "local[2,7]"),
        ("spark://host:7077", 3, "spark://host:7077"),
        ("yarn", None, "yarn"),
        ("k8s://https://host:6443", None, "k8s://https://host:6443"),
        ("local-cluster[2,1,1024]", None, "local-cluster[2,1,1024]"),
    ],
)
def test_a_master_here_tries_lost_shards_again(
    address: str, workers: int | None, master: str
) -> None:
    assert master_of(address, workers) == master


def test_spark_connect_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="Spark Connect"):
        master_of("sc://host:15002", None)


@pytest.mark.parametrize("address", ["host", "host:port", "local(2)", "mesos:", "spark://host"])
def test_what_is_no_master_of_spark_is_refused_with_what_is_one(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--address .* (no master|no HOST:PORT)"):
        master_of(address, None)


@pytest.mark.parametrize(
    "address", ["local", "auto", "10.0.0.5:6379", "[::1]:6379", "ray://head:10001", "anyscale://x"]
)
def test_addresses_that_ray_takes(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address", ["head", "head:", "head:0", "head:99999", ":6379", "ray://head"]
)
def test_addresses_that_ray_does_not_take_are_refused_with_what_it_takes(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--address .*HOST:PORT"):
        check_address(address)


def test_errors_of_clusters_lose_their_traces() -> None:
    told = RuntimeError('it failed:\n\tat org.apache.Thing.run(Thing.java)\n  File "a.py"\nwhy')

    assert one_line(told) == "it failed: why"
    assert one_line(RuntimeError("")) == "RuntimeError"
