"""What is a pool on a cluster: which pods does it have, and what are their processes told? Pure.

Its pods come with no model: each is told which to host when it runs, as a process of this machine
is, and fetches what it was told of from the shared store when that is first asked for.
"""

from decimal import Decimal
from typing import Final

import msgspec

from headrace.control.desired import Revision
from headrace.control.kubernetes.compare import quantity
from headrace.control.kubernetes.names import Place
from headrace.control.kubernetes.pods import HTTP_PORT, METRICS_PORT, MODELS_DIR
from headrace.control.kubernetes.told import artifact_of, check_artifacts
from headrace.core import (
    ArtifactsSettings,
    FailedPreconditionError,
    PoolSettings,
    ReplicaSettings,
)
from headrace.core.spec_kubernetes import KubernetesSpec, PodsSpec, ResourcesSpec


def pool_text(hosts: PoolSettings, place: Place) -> str:
    """What the processes of a pool's pods read when they start.

    Raises:
        FailedPreconditionError: A pool cannot run there; the text says what to do.
    """
    check_artifacts(f"pool {hosts.name!r}", place)
    if not place.internal_secret:
        raise FailedPreconditionError(
            f"pool {hosts.name!r}: its pods are told what to host over the network, and listen to "
            "who shows the internal token only: put one into a Secret, and name it with "
            "--internal-secret"
        )
    settings = msgspec.structs.replace(
        hosts,
        uds="",
        host="0.0.0.0",  # noqa: S104  # the pod's own address; a NetworkPolicy says who reaches it
        port=HTTP_PORT,
        metrics_port=METRICS_PORT,
        drain_timeout_s=place.drain_timeout_s,
        log_format=place.log_format,
        artifacts=ArtifactsSettings(url=place.artifacts_url, directory=MODELS_DIR),
    )
    return msgspec.json.format(msgspec.json.encode(settings), indent=2).decode()


def hosted_settings(revision: Revision) -> ReplicaSettings:
    """How a pod of a pool is told of a model: by what it has to fetch.

    Raises:
        FailedPreconditionError: The model lies on the control plane's machine only.
    """
    artifact = artifact_of(revision)
    path = f"{artifact.digest.replace(':', '/')}/{artifact.filename}"
    return msgspec.structs.replace(revision.settings, path=path)


def pods_of_pool(hosts: PoolSettings, settings: KubernetesSpec) -> PodsSpec:
    """What a pool's pods are like: as all others, with memory for the models that they load.

    What the spec says of this very pool holds as it is.

    Raises:
        FailedPreconditionError: It says less than the models of the pool may take.
    """
    own = settings.pools.get(hosts.name)
    if own is not None:
        _check_memory(hosts, own.resources.memory_limit or own.resources.memory)
        return own
    told = settings.resources
    limit = told.memory_limit and _more(told.memory_limit, hosts.memory_bytes)
    resources: ResourcesSpec = msgspec.structs.replace(
        told, memory=_more(told.memory, hosts.memory_bytes), memory_limit=limit
    )
    return msgspec.structs.replace(settings, resources=resources)


def _check_memory(hosts: PoolSettings, limit: str) -> None:
    if (quantity(limit) or 0) <= hosts.memory_bytes:
        raise FailedPreconditionError(
            f"pool {hosts.name!r}: its models may take {hosts.memory_bytes} bytes (memory_bytes), "
            f"and its pods no more than {limit}: give kubernetes.pools.{hosts.name}.resources "
            "more memory than that"
        )


_KIB: Final = Decimal(1024)


def _more(memory: str, added_bytes: int) -> str:
    """A quantity of memory with so many bytes more, in whole KiB."""
    size = (quantity(memory) or Decimal(0)) + added_bytes
    return f"{int((size / _KIB).to_integral_value(rounding='ROUND_CEILING'))}Ki"
