"""A control plane that dies at a point of its own choosing: `python -m tests.e2e.rollouts.mortal`.

HEADRACE_TEST_DIES names the point: `before:2` dies instead of storing a state for the second time,
of a rollout or of all; `after:1` right after it did so once, before anybody acted on it.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from headrace.control.__main__ import main
from headrace.control.store_thread import StoreThread

when, _, number = os.environ["HEADRACE_TEST_DIES"].partition(":")
run = StoreThread.run
saves = 0


async def run_and_die(self: StoreThread, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    global saves  # noqa: PLW0603  # of this process, which is about to end
    is_save = call.__name__ in {"save", "save_rollout"}
    saves += is_save
    is_time = is_save and saves == int(number)
    if is_time and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = await run(self, call, *args, **named)
    if is_time:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


StoreThread.run = run_and_die  # type: ignore[method-assign,assignment]  # what it is for

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
