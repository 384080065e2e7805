"""How is the scheduler of jobs put together? With a name of its home, and one of its process."""

import contextlib
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from headrace.control.files import write_atomic
from headrace.control.home import Home
from headrace.control.job_planner import Planner
from headrace.control.job_process import JobStarter
from headrace.control.job_scheduler import JobScheduler
from headrace.control.sandbox import Sandbox
from headrace.control.store import Event
from headrace.control.store_thread import StoreThread
from headrace.core import Clock

_ID: Final = re.compile(r"[0-9a-f]{16}")


def make_jobs(
    *,
    home: Home,
    store: StoreThread,
    emit: Callable[[Sequence[Event]], Awaitable[None]],
    clock: Clock,
    sandbox: Sandbox | None = None,
) -> JobScheduler:
    """The scheduler of a home; nothing of it runs yet. Blocking.

    Args:
        sandbox: Keeps runs apart as it does replicas; None for none.
    """
    name = f"{socket.gethostname()}:{home_id(home.planner_file)}"
    return JobScheduler(
        store=store,
        planner=Planner(store=store.store, owner=f"{name}/{secrets.token_hex(4)}", home=name),
        start=JobStarter(home=home.root, log=home.log_of("jobs"), sandbox=sandbox),
        emit=emit,
        clock=clock,
    )


def home_id(path: Path) -> str:
    """The id that stands at `path`; a new one if none does.

    Raises:
        FailedPreconditionError: It cannot be written.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = path.read_text(encoding="ascii").strip()
        if _ID.fullmatch(found):
            return found
    new = secrets.token_hex(8)
    write_atomic(path, new.encode())
    return new
