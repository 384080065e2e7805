"""Where another server answers for a version: its address and what it speaks."""

from enum import StrEnum

import msgspec


class UpstreamProtocol(StrEnum):
    """What a server that someone else runs speaks."""

    V2 = "v2"
    """The Open Inference Protocol over HTTP: Triton, KServe, MLServer, Headrace."""
    GRPC = "grpc"
    """The same over gRPC."""
    V1 = "v1"
    """TensorFlow Serving's REST API."""
    TORCHSERVE = "torchserve"
    OPENAI = "openai"
    """`/v1/chat/completions` and its siblings."""
    HTTP = "http"
    """Anything else over HTTP."""


class UpstreamTls(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How an upstream is verified and what it is shown: paths of PEM files; empty for none.

    `ca_file`: empty for the machine's authorities. `server_name`: empty for the URL's host.
    """

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    server_name: str = ""


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server, or a name that stands for several.

    `url`: `http://host:port`, `https://…` (verified against the machine's authorities), or
    `grpc://…`; a path in it is put before every request's. `model`: what the model is called there;
    empty for the endpoint's own name. `health_path`: asked every `health_interval_s`; empty takes
    the protocol's own, None asks nothing.
    """

    url: str
    protocol: UpstreamProtocol = UpstreamProtocol.V2
    model: str = ""
    health_path: str | None = ""
    health_interval_s: float = 2.0
    max_requests: int = 1024
    tls: UpstreamTls | None = None


class StickySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What keeps a caller on the version it saw: exactly one of a header, a cookie, a claim.

    `claim` is read from the bearer token's payload. `salt` makes two experiments on one key
    independent; empty takes one per rollout.
    """

    header: str = ""
    cookie: str = ""
    claim: str = ""
    salt: str = ""
