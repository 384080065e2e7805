from pathlib import Path

import pytest

from headrace.gateway import EnvoyNotFoundError
from headrace.gateway.binary import arguments, find_envoy
from tests.unit.gateway.arbitrary import gateway_settings


def _executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_settings_win_over_the_environment_and_that_over_the_wheel(tmp_path: Path) -> None:
    mine, other = _executable(tmp_path / "mine"), _executable(tmp_path / "other")
    environ = {"HEADRACE_ENVOY": str(other)}

    assert find_envoy(gateway_settings(envoy=mine), environ=environ) == mine
    assert find_envoy(gateway_settings(), environ=environ) == other
    assert find_envoy(gateway_settings(), environ={}).name == "envoy"


def test_a_file_that_cannot_be_executed_is_refused_with_the_way_out(tmp_path: Path) -> None:
    plain = tmp_path / "envoy"
    plain.write_text("")

    with pytest.raises(EnvoyNotFoundError, match="HEADRACE_ENVOY"):
        find_envoy(gateway_settings(envoy=plain), environ={})


@pytest.mark.parametrize(("cores", "workers"), [(1, "1"), (2, "1"), (8, "2"), (64, "16")])
def test_one_worker_per_four_cores_and_at_least_one(cores: int, workers: str) -> None:
    command = arguments(gateway_settings(), Path("/envoy"), Path("/c.json"), cores)

    assert command[command.index("--concurrency") + 1] == workers


def test_a_misspelt_field_is_an_error_to_envoy() -> None:
    command = arguments(gateway_settings(concurrency=3), Path("/envoy"), Path("/c.json"), 2)

    assert "--reject-unknown-dynamic-fields" in command
    assert command[command.index("--concurrency") + 1] == "3"
