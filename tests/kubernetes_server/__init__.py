"""A strict stand-in for a Kubernetes API server, with the controllers that the driver needs.

What real ones do and this does: schemas (unknown fields are refused), versions and conflicts,
server-side apply with managers, watches with bookmarks and expiry, Deployments, EndpointSlices,
garbage collection, and faults on demand. It has one namespace, and no admission and no quotas.
Needs `kubernetes-validate`.
"""

from tests.kubernetes_server.controllers import Controllers, InstantRuntime, Runtime
from tests.kubernetes_server.server import FakeApiServer, Fault
from tests.kubernetes_server.store import RefusedError, Store

__all__ = [
    "Controllers",
    "FakeApiServer",
    "Fault",
    "InstantRuntime",
    "RefusedError",
    "Runtime",
    "Store",
]
