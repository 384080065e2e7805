"""What would a control plane run for a spec, with the models of this home? Every one pinned."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.control.desired import DesiredEndpoint
    from headrace.core.spec import EndpointSpec, SystemSpec


def pinned_endpoints(spec: "SystemSpec", home: Path) -> "tuple[DesiredEndpoint, ...]":
    """The endpoints of `spec`, as the registry of `home` pins them.

    Raises:
        SpecError: With every model that is missing, damaged or cannot be served.
    """
    from headrace.control.resolve import Resolver
    from headrace.control.sandboxed import SandboxedInspector
    from headrace.registry import Registry

    with contextlib.closing(SandboxedInspector.of_home(home)) as inspect:
        resolver = Resolver(
            registry=Registry(home.resolve(), inspect),
            inspect=inspect,
            spec=spec.model_copy(update={"streams": ()}),
            max_body_bytes=spec.gateway.max_body_bytes,
        )
        return resolver.resolve()


def revisions_in(spec: "SystemSpec", home: Path) -> dict[tuple[str, str], str]:
    """Ids of the revisions that a control plane would run, by endpoint and version.

    Endpoints whose models are files, or are not in the registry, have none here: whoever serves
    them would push them first.
    """
    from headrace.core import HeadraceError

    found = {}
    for endpoint in spec.endpoints:
        if _is_path(endpoint):
            continue
        alone = spec.model_copy(update={"endpoints": (endpoint,)})
        try:
            pinned = pinned_endpoints(alone, home)
        except HeadraceError:
            continue  # an export says of which Services it does not know the names
        for one in pinned:
            for arm in one.arms:
                if arm.revision.upstream is None:
                    found[str(one.name), arm.revision.version] = arm.revision.id
    return found


def has_files(spec: "SystemSpec") -> bool:
    """Whether an endpoint serves a file of this machine."""
    return any(map(_is_path, spec.endpoints))


def _is_path(endpoint: "EndpointSpec") -> bool:
    from headrace.core.spec import is_model_path

    return any(row.model and is_model_path(row.model) for row in endpoint.split())
