"""What is missing for an engine is told, with the way out."""

import importlib.util

import pytest
from typer.testing import CliRunner

from headrace.cli.batch.commands import EngineChoice, app
from headrace.cli.batch.run import open_engine
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.engine import usable_cores
from headrace.jobs.engines.ray import one_line
from headrace.jobs.run import LocalEngine


def test_one_machine_takes_its_cores_or_as_many_workers_as_are_asked_for() -> None:
    some = open_engine(EngineChoice.LOCAL, address="", workers=None, source="x")
    few = open_engine(EngineChoice.LOCAL, address="", workers=2, source="x")

    assert (some, few) == (LocalEngine(workers=usable_cores()), LocalEngine(workers=2))


def test_one_machine_has_no_address() -> None:
    with pytest.raises(InvalidArgumentError, match="needs --engine ray"):
        open_engine(EngineChoice.LOCAL, address="auto", workers=None, source="x")


def test_ray_that_is_not_installed_is_named_with_the_command_that_installs_it() -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("ray is installed")
    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[batch,ray\]'"):
        open_engine(EngineChoice.RAY, address="", workers=None, source="x")


def test_spark_is_refused_with_the_engines_that_there_are() -> None:
    result = CliRunner().invoke(
        app, ["run", "-m", "m", "-i", "in", "-o", "out", "--engine", "spark"]
    )

    assert result.exit_code == 2
    told = "spark was removed; use ray on a cluster, or local on one machine"
    assert told in " ".join(result.output.replace("│", "").split())


def test_errors_of_clusters_lose_their_traces() -> None:
    told = RuntimeError('it failed:\n\tat org.apache.Thing.run(Thing.java)\n  File "a.py"\nwhy')

    assert one_line(told) == "it failed: why"
    assert one_line(RuntimeError("")) == "RuntimeError"
