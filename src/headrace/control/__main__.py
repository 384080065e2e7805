"""`python -m headrace.control --settings FILE`: one control plane, as `headrace up` starts it."""

import sys
from pathlib import Path

from headrace.control.app.main import run
from headrace.control.base.settings import read_settings
from headrace.core import InvalidArgumentError

_USAGE = "usage: python -m headrace.control --settings FILE.json"


def main(arguments: list[str]) -> int:
    """Run as FILE says.

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
        settings = read_settings(Path(file))
    except InvalidArgumentError as error:
        print(error, file=sys.stderr)  # noqa: T201  # as above
        return 2
    return run(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
