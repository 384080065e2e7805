"""A control plane of which nothing runs, with its console."""

from headrace.control.plane.control_plane import ControlPlane
from tests.unit.control.conftest import (
    addresses,
    anyio_backend,
    home,
    plane,
    prometheus,
    registry,
)

__all__ = ["ControlPlane", "addresses", "anyio_backend", "home", "plane", "prometheus", "registry"]
