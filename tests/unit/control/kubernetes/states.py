"""Desired states and API servers for tests of the driver `kubernetes`, made in code."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import msgspec

from headrace.control.kubernetes import InstallationName
from headrace.control.kubernetes.api import ClusterApi
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    make_revision,
)
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.scale import AutoscaleSpec, PoolSpec

PLACE = InstallationName(
    namespace="models",
    artifacts_url="s3://artifacts",
    image_registry="registry.test/ml",
    drain_timeout_s=20.0,
)
POOLS_PLACE = replace(PLACE, internal_secret="headrace-internal")  # noqa: S106  # its name only
"""Pools need a token, by which their pods are told what to host."""


def a_revision(
    endpoint: str = "digits",
    version: str = "1",
    pool: str = "",
    **settings: Any,  # noqa: ANN401  # fields of several types
) -> Revision:
    digest = hashlib.sha256(f"{endpoint}:{version}".encode()).hexdigest()
    return make_revision(
        endpoint=EndpointName(endpoint),
        model=f"{endpoint}:{version}",
        pool=pool,
        settings=ReplicaSettings(
            model_name=endpoint,
            model_version=version,
            path=f"/home/headrace/artifacts/sha256/{digest}/model.onnx",
            sha256=digest,
            **settings,
        ),
    )


def an_arm(
    endpoint: str = "digits", version: str = "1", *, weight: int = 100, replicas: int = 1
) -> DesiredArm:
    revision = a_revision(endpoint, version)
    return DesiredArm(revision=revision, weight=weight, replicas=replicas)


def a_hosted_arm(endpoint: str = "digits", version: str = "1", *, weight: int = 100) -> DesiredArm:
    """An arm without pods of its own: the pool `small` hosts it."""
    revision = a_revision(endpoint, version, "small")
    return DesiredArm(revision=revision, weight=weight, replicas=0)


def a_pool(name: str = "small", *, replicas: int = 2, **told: Any) -> PoolSpec:  # noqa: ANN401  # as above
    defaults = {"memory_bytes": 2_000_000_000, "max_loaded": 64, "load_timeout_s": 30.0}
    return PoolSpec(name=name, replicas=replicas, **(defaults | told))


def an_endpoint(
    *arms: DesiredArm, name: str = "digits", autoscale: AutoscaleSpec | None = None
) -> DesiredEndpoint:
    arms = arms or (an_arm(name),)
    return DesiredEndpoint(name=EndpointName(name), timeout_s=None, arms=arms, autoscale=autoscale)


def with_pools(state: DesiredState, *pools: PoolSpec) -> DesiredState:
    return msgspec.structs.replace(state, pools=pools)


def a_state(*endpoints: DesiredEndpoint, **kubernetes: Any) -> DesiredState:  # noqa: ANN401  # as a document has it
    return DesiredState(
        spec={"kubernetes": kubernetes} if kubernetes else {},
        endpoints=endpoints or (an_endpoint(),),
    )


def an_api(answer: Callable[[httpx2.Request], Any]) -> ClusterApi:
    """A client of an API server that is a function, perhaps an async one."""
    http = httpx2.AsyncClient(base_url="http://api", transport=httpx2.MockTransport(answer))
    return ClusterApi(http=http, namespace="models")
