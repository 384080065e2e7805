"""Which models and endpoints does a stream's worker ask: what answers, its canary, its shadow?"""

import msgspec

from headrace.core import ReplicaSettings
from headrace.streaming.settings import EndpointSettings, StreamSettings


def models_of(told: StreamSettings) -> list[ReplicaSettings]:
    """The models that the worker loads."""
    every = (told, told.canary, told.shadow)
    return [one.model for one in every if one is not None and one.model is not None]


def endpoints_of(told: StreamSettings) -> list[EndpointSettings]:
    """The endpoints that it asks."""
    every = (told, told.canary, told.shadow)
    return [one.endpoint for one in every if one is not None and one.endpoint is not None]


def through_gateway(told: StreamSettings, *, url: str, ca_file: str) -> StreamSettings:
    """The same, with the way to the endpoints."""

    def reached(endpoint: EndpointSettings | None) -> EndpointSettings | None:
        if endpoint is None:
            return None
        return msgspec.structs.replace(endpoint, url=url, ca_file=ca_file)

    canary, shadow = told.canary, told.shadow
    if canary is not None:
        canary = msgspec.structs.replace(canary, endpoint=reached(canary.endpoint))
    if shadow is not None:
        shadow = msgspec.structs.replace(shadow, endpoint=reached(shadow.endpoint))
    return msgspec.structs.replace(
        told, endpoint=reached(told.endpoint), canary=canary, shadow=shadow
    )
