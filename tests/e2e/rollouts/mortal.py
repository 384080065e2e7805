"""A control plane that dies at a point of its own choosing: `python -m tests.e2e.rollouts.mortal`.

HEADRACE_TEST_DIES names the point: `before:2` dies instead of storing a state for the second time,
of a rollout or of all; `after:1` right after it did so once, before anybody acted on it.
"""

import os
import signal
import sys
from typing import Any

from headrace.control.__main__ import main
from headrace.control.state.database import BoundTransaction

when, _, number = os.environ["HEADRACE_TEST_DIES"].partition(":")
call = BoundTransaction.__call__
saves = 0


async def call_and_die(self: BoundTransaction[Any, Any], *args: Any, **named: Any) -> Any:
    global saves  # noqa: PLW0603  # of this process, which is about to end
    is_save = self.doing in {"store the desired state", "store a rollout"}
    saves += is_save
    is_time = is_save and saves == int(number)
    if is_time and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = await call(self, *args, **named)
    if is_time:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


BoundTransaction.__call__ = call_and_die  # type: ignore[method-assign]  # what it is for

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
