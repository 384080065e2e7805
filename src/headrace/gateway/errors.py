"""What can go wrong with the gateway itself."""

from pathlib import Path

from headrace.core import FailedPreconditionError, InvalidArgumentError, UnavailableError


class SnapshotRejectedError(InvalidArgumentError):
    """Envoy refused a configuration; what it had before is still in force."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Envoy rejected the configuration: {reason}")
        self.reason = reason


class PortInUseError(FailedPreconditionError):
    """Another process listens where the gateway should."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is in use by another process: choose another port")
        self.host = host
        self.port = port


class EnvoyNotFoundError(FailedPreconditionError):
    """There is no Envoy binary to run."""


class UnsafeDirectoryError(FailedPreconditionError):
    """A directory for sockets belongs to somebody else, or others may write to it."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} cannot hold sockets and configuration: {why}")
        self.path = path


class NotOurGatewayError(FailedPreconditionError):
    """The process is gone, or is another one that got its number."""

    def __init__(self, pid: int, run_dir: Path) -> None:
        super().__init__(f"process {pid} is not the gateway of {run_dir}")
        self.pid = pid


class GatewayUnavailableError(UnavailableError):
    """Envoy does not run, ended while starting, or does not answer on its admin socket."""
