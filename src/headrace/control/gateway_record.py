"""Records of an Envoy that an earlier control plane started: its process, and its routes."""

from pathlib import Path
from typing import Final

import msgspec

from headrace.control.ownership import HomeIdentity, ProcessOwner
from headrace.core.processes import start_ticks
from headrace.core.spec_observe import LogMode, RequestLogSpec, TracingSpec
from headrace.core.state_file import StateFile
from headrace.gateway import WATCHED_FILES, EndpointRoute, GatewaySettings, ListenerTls

_FIXED: Final = ("host", "http_port", "grpc_port", "max_body_bytes", "access_log")
"""What a running Envoy cannot change."""
_CHANGEABLE: Final = ("tls", "request_log", "tracing", "counts_all")
"""What it can change, while callers' connections end in their own time."""


class GatewayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which Envoy runs, and with which settings."""

    pid: int
    start_ticks: int
    host: str
    http_port: int
    grpc_port: int
    max_body_bytes: int
    access_log: bool
    home: HomeIdentity | None = None
    request_log: RequestLogSpec = RequestLogSpec(mode=LogMode.ALL)
    tracing: TracingSpec | None = None
    tls: ListenerTls | None = None
    files: tuple[str, ...] = ()
    counts_all: bool = False

    @classmethod
    def of(cls, settings: GatewaySettings, pid: int, home: HomeIdentity | None) -> "GatewayRecord":
        """The record of an Envoy that `home` started with `settings`."""
        of_settings = {name: getattr(settings, name) for name in (*_FIXED, *_CHANGEABLE)}
        ticks = start_ticks(pid) or 0
        return cls(pid=pid, start_ticks=ticks, home=home, files=WATCHED_FILES, **of_settings)

    def fits(self, settings: GatewaySettings) -> bool:
        """Whether it can become what `settings` ask for while it runs."""
        return self.files == WATCHED_FILES and all(
            getattr(self, name) == getattr(settings, name) for name in _FIXED
        )

    def is_current(self, settings: GatewaySettings) -> bool:
        """Whether it has what it can change of `settings`."""
        return all(getattr(self, name) == getattr(settings, name) for name in _CHANGEABLE)


def gateway_record_file(path: Path) -> StateFile[GatewayRecord]:
    """The file of the record of this home's Envoy."""
    return StateFile(path, GatewayRecord, "the record of the gateway")


def routes_file(path: Path) -> StateFile[tuple[EndpointRoute, ...]]:
    """The file of the routes that a gateway acknowledged last."""
    return StateFile(path, tuple[EndpointRoute, ...], "the routes of the gateway")


def read_gateway_record(path: Path, owner: ProcessOwner) -> GatewayRecord | None:
    """The record of an Envoy that still runs, if it is `owner`'s."""
    record = gateway_record_file(path).load()
    return record if record is not None and owner.is_running(record) else None
