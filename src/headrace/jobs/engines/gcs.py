"""Is it Ray that listens there, and lets us in? Its own library asks twenty times and says neither.

A cluster's head answers by gRPC (the service is in Ray's `gcs_service.proto`), and so does its port
for clients. Any answer will do, that it knows no such method too; what asks for a token is told
apart.
"""

import os
from typing import Final

import grpc

from headrace.jobs.engines.address import ANSWER_S

_METHOD: Final = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
ASKS: Final = (
    "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, unless the token is in "
    "~/.ray/auth_token"
)
WRONG: Final = "is RAY_AUTH_TOKEN, or else ~/.ray/auth_token, that of the cluster?"


def has_token() -> bool:
    """Whether Ray is told to show a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def why_no_head(host: str, port: int) -> str:
    """Why no head of a Ray cluster can be talked to there; empty if one may be."""
    if os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
        return ""  # with certificates that Ray knows where to find
    there = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # As Ray does: its clusters are not behind the proxy of a company.
    with grpc.insecure_channel(there, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_METHOD)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            return why_refused(error.code(), f"{host}:{port}", shows_token=has_token())
    return ""


def why_refused(code: grpc.StatusCode, place: str, *, shows_token: bool) -> str:
    """What an answer means for whoever wants to connect; empty if it can be tried."""
    if code in _SILENT:
        return f"{place}: what listens there does not answer as Ray does"
    if code is grpc.StatusCode.UNAUTHENTICATED and not shows_token:
        return ASKS
    return ""
