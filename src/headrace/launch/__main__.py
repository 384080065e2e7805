"""`headrace` for a parent process: as the command, and ends when the parent does.

The parent holds the other end of a pipe. The kernel closes it however the parent ends.
"""

import sys

from headrace.cli import main
from headrace.core.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
