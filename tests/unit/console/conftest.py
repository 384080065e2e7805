"""A control plane of which nothing runs, with its console."""

from headrace.control.plane import ControlPlane
from tests.unit.control.conftest import anyio_backend, home, plane, registry

__all__ = ["ControlPlane", "anyio_backend", "home", "plane", "registry"]
