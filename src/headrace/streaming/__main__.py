"""`python -m headrace.streaming --settings FILE`: one worker, as the control plane starts it.

With `--attached` it ends with the process that started it, whose end of descriptor 3 then closes.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from headrace.observe import configure_logging
from headrace.streaming.exits import EXIT_SETTINGS
from headrace.streaming.run import run
from headrace.streaming.settings import StreamSettings

_USAGE = "usage: python -m headrace.streaming --settings FILE.json [--attached]"
_PARENT_FD = 3


def main(arguments: list[str]) -> int:
    """Stream as FILE says.

    Returns:
        The process's exit status, 2 if the settings cannot be read.
    """
    match arguments:
        case ["--settings", file]:
            pass
        case ["--settings", file, "--attached"]:
            threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        case _:
            print(_USAGE, file=sys.stderr)  # noqa: T201  # there is no log yet
            return EXIT_SETTINGS
    try:
        settings = msgspec.json.decode(Path(file).read_bytes(), type=StreamSettings)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"cannot read {file}: {error}", file=sys.stderr)  # noqa: T201  # as above
        return EXIT_SETTINGS
    configure_logging(log_format="json" if settings.log_format == "json" else "text")
    return run(settings)


def _end_with_parent() -> None:
    while True:
        try:
            if not os.read(_PARENT_FD, 1):
                break
        except OSError:
            break
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
