"""Control plane: desired state, observed state, and steps between. Imports `gateway` and below.

Only names and files are loaded with this package; what runs a control plane is loaded when it does.
"""

from headrace.control.base.settings import ControlFile, ControlSettings, read_control_file

__all__ = ["ControlFile", "ControlSettings", "read_control_file", "run", "start_detached"]


def run(settings: ControlSettings) -> int:
    """Be the control plane of `settings.home` until told to stop; the exit status.

    A signal to end (SIGTERM, SIGINT) drains and ends everything; a second one does not wait. With
    `copy_logs` the logs of all processes go to standard error.
    """
    from headrace.control.app.main import run as run_control  # noqa: PLC0415  # costly to load

    return run_control(settings)


def start_detached(settings: ControlSettings, *, timeout_s: float = 300.0) -> ControlFile:
    """Start a control plane that outlives this process; where it is reached, once all is ready.

    Blocking. Ready means that every endpoint answered a real request through the gateway. If that
    fails, all that was started is stopped again, unless the system ran before.

    Raises:
        FailedPreconditionError: It cannot become ready; the message says why.
        DeadlineExceededError: It is not ready after `timeout_s`.
    """
    from headrace.control.app.detached import start_detached as start  # noqa: PLC0415  # costly to load

    return start(settings, timeout_s=timeout_s)
