"""Replica command `python -m headrace.serving --settings FILE`, which the control plane starts.

With `ReplicaSettings` it serves their model; with `PoolReplicaSettings` it serves the models that
the control plane assigns.
"""

import sys
from pathlib import Path

import msgspec

from headrace.core import PoolReplicaSettings, ReplicaSettings
from headrace.observe import configure_logging
from headrace.serving.replica import run

_USAGE = "usage: python -m headrace.serving --settings FILE.json"


def main(arguments: list[str]) -> int:
    """Serve with the settings in FILE.

    Returns:
        The process's exit status, 2 if the settings cannot be read.
    """
    match arguments:
        case ["--settings", file]:
            pass
        case _:
            print(_USAGE, file=sys.stderr)  # noqa: T201  # there is no log yet
            return 2
    try:
        settings = _read(Path(file))
    except (OSError, msgspec.MsgspecError) as error:
        print(f"cannot read {file}: {error}", file=sys.stderr)  # noqa: T201  # as above
        return 2
    configure_logging(log_format="json" if settings.log_format == "json" else "text")
    if isinstance(settings, PoolReplicaSettings):
        from headrace.serving.pool.process import run_pool  # noqa: PLC0415  # replicas do without

        return run_pool(settings)
    return run(settings)


def _read(file: Path) -> ReplicaSettings | PoolReplicaSettings:
    """Return the settings in the file: a pool has a name, a replica the name of its model."""
    data = file.read_bytes()
    fields = msgspec.json.decode(data)
    is_pool = isinstance(fields, dict) and "name" in fields
    if is_pool:
        return msgspec.json.decode(data, type=PoolReplicaSettings)
    return msgspec.json.decode(data, type=ReplicaSettings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
