"""`python -m headrace.serving --settings FILE`: one replica, as the control plane starts it."""

import sys
from pathlib import Path

import msgspec

from headrace.core import ReplicaSettings
from headrace.observe import configure_logging
from headrace.serving.replica import run

_USAGE = "usage: python -m headrace.serving --settings FILE.json"


def main(arguments: list[str]) -> int:
    """Serve as FILE says.

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
        settings = msgspec.json.decode(Path(file).read_bytes(), type=ReplicaSettings)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"cannot read {file}: {error}", file=sys.stderr)  # noqa: T201  # as above
        return 2
    configure_logging(log_format="json" if settings.log_format == "json" else "text")
    return run(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
