"""Desired states for tests of the driver `kubernetes`, made in code."""

import hashlib
from typing import Any

from headrace.control.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    make_revision,
)
from headrace.control.kubernetes import Place
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.autoscale_settings import AutoscaleSettings

PLACE = Place(namespace="models", artifacts_url="s3://artifacts", drain_timeout_s=20.0)


def a_revision(endpoint: str = "digits", version: str = "1", **settings: Any) -> Revision:  # noqa: ANN401  # fields of several types
    digest = hashlib.sha256(f"{endpoint}:{version}".encode()).hexdigest()
    return make_revision(
        endpoint=EndpointName(endpoint),
        model=f"{endpoint}:{version}",
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


def an_endpoint(
    *arms: DesiredArm, name: str = "digits", autoscale: AutoscaleSettings | None = None
) -> DesiredEndpoint:
    arms = arms or (an_arm(name),)
    return DesiredEndpoint(name=EndpointName(name), timeout_s=None, arms=arms, autoscale=autoscale)


def a_state(*endpoints: DesiredEndpoint, **kubernetes: Any) -> DesiredState:  # noqa: ANN401  # as a document has it
    return DesiredState(
        spec={"kubernetes": kubernetes} if kubernetes else {},
        endpoints=endpoints or (an_endpoint(),),
    )
