"""Construction of the scheduler of jobs, with a name of its home and one of its process."""

import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence

from headrace.control.faults import Faults
from headrace.control.home import Home
from headrace.control.job_planner import Planner
from headrace.control.job_process import JobStarter
from headrace.control.job_scheduler import JobScheduler
from headrace.control.ownership import claim
from headrace.control.sandbox import Sandbox
from headrace.control.state.records import Event
from headrace.control.state.store import Store
from headrace.core import Clock


def make_jobs(
    *,
    home: Home,
    store: Store,
    emit: Callable[[Sequence[Event]], Awaitable[None]],
    clock: Clock,
    faults: Faults,
    sandbox: Sandbox | None = None,
) -> JobScheduler:
    """The scheduler of a home; nothing of it runs yet. Blocking.

    Args:
        sandbox: Keeps runs apart as it does replicas; None for none.
    """
    name = f"{socket.gethostname()}:{claim(home.root).id}"
    return JobScheduler(
        store=store,
        planner=Planner(
            store=store, owner=f"{name}/{secrets.token_hex(4)}", home=name, faults=faults
        ),
        start=JobStarter(home=home.root, log=home.log_of("jobs"), sandbox=sandbox),
        emit=emit,
        clock=clock,
        faults=faults,
    )
