"""Flags of `headrace up` that a home stores."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from headrace.cli.base.options import CommandGroup
from headrace.cli.up.flags import StoredFlags
from headrace.cli.up.settings import ControlOptions, GatewayTlsOptions, OnSigterm
from headrace.control import ControlFile
from headrace.control.base.ownership import claim
from headrace.core import FailedPreconditionError

Start = Callable[..., tuple[ControlOptions, GatewayTlsOptions]]
CONTROL = ControlFile(
    pid=7, started=0.0, admin_url="http://a", http_url="http://h", grpc_target="g", metrics_url="m"
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "h" / "run").mkdir(parents=True)
    return tmp_path / "h"


@pytest.fixture
def start(home: Path) -> Start:
    """Starts as `headrace up` does: returns the options in force, and stores the flags."""

    def run(*arguments: str, running: bool = False, **environment: str) -> Any:  # noqa: ANN401  # of the tests
        app, results = CommandGroup(), []

        @app.command()
        def up(context: typer.Context, *, options: ControlOptions, tls: GatewayTlsOptions) -> None:
            stored = StoredFlags.load(home)
            if running:
                stored.check_running(CONTROL, context, options, tls)
            options, tls = stored.applied_to(options, context), stored.applied_to(tls, context)
            stored.updated(context, options, tls).save(home)
            results.append((options, tls))

        answer = CliRunner().invoke(app, list(arguments), env=environment)
        if answer.exception is not None:
            raise answer.exception
        return results[0]

    return run


def test_a_start_uses_the_flags_of_earlier_starts(start: Start, home: Path) -> None:
    start(
        *("--http-port", "8100", "--allowed-host", "a", "--allowed-host", "b"),
        *("--on-sigterm", "stop", "--tls-cert", "c.pem", "--gateway", "none"),
    )
    start("--http-port", "8200", "--insecure-admin")
    options, tls = start()

    assert (options.http_port, options.grpc_port) == (8200, None)
    assert options.allowed_hosts == ["a", "b"]
    assert options.on_sigterm is OnSigterm.STOP
    assert options.insecure_admin is True
    assert tls.tls_cert == Path.cwd() / "c.pem"
    assert StoredFlags.load(home).text() == (
        "--http-port 8200 --allowed-host a --allowed-host b --gateway none --on-sigterm stop "
        f"--tls-cert {Path.cwd()}/c.pem --insecure-admin"
    )


def test_a_variable_takes_precedence_over_a_stored_flag_and_is_not_stored(start: Start) -> None:
    start("--http-port", "8100")
    during, _ = start(HEADRACE_HTTP_PORT="9000")
    after, _ = start()

    assert (during.http_port, after.http_port) == (9000, 8100)


def test_values_that_may_be_secret_are_not_displayed(start: Start, home: Path) -> None:
    start("--state-url", "postgresql://u:hunter2@h/d")

    assert StoredFlags.load(home).text() == "--state-url ***"


def test_a_running_system_refuses_other_flags_and_accepts_its_own(start: Start) -> None:
    start("--http-port", "8100")
    start("--http-port", "8100", running=True)

    with pytest.raises(FailedPreconditionError) as refused:
        start("--http-port", "8200", "--admin-host", "10.0.0.5", running=True)
    assert "--http-port, --admin-host" in str(refused.value)
    assert "kill 7" in str(refused.value)


def test_a_copy_of_a_home_does_not_take_its_flags(start: Start, home: Path, tmp_path: Path) -> None:
    claim(home)
    start("--http-port", "8100")
    shutil.copytree(home, tmp_path / "copy")
    home.rename(tmp_path / "moved")

    assert StoredFlags.load(tmp_path / "copy").text() == ""
    assert StoredFlags.load(tmp_path / "moved").text() == "--http-port 8100"
