"""The same system as the control plane's tests start."""

from tests.e2e.control.conftest import system

__all__ = ["system"]
