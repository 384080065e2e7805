"""`headrace` for a parent process: as the command, and ends when the parent does.

The parent holds the other end of a pipe. The kernel closes it however the parent ends.
"""

import os
import signal
import sys
import threading

from headrace.cli import main
from headrace.core.processes import PASSED_FD


def _end_with_parent() -> None:
    while os.read(PASSED_FD, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    sys.exit(main())
