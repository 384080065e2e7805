"""What does it cost to know who calls? Throughput through Envoy, with keys and with tokens.

A 26 kB MLP, one row, 32 connections. Envoy and the replica share one core, the load has another.
Three gateways in front of the same replica differ in nothing but what they ask.
"""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from bench import cpu, models, processes, systems, verify
from bench.context import Context, http_arm, one_row
from bench.payloads import json_payload
from bench.results import SuiteResult, Table, Target, cell
from bench.windows import Arm, Rounds, figure, interleave, ratio
from headrace.core import SystemClock
from headrace.core.spec.access import AccessSettings, EndpointAccess, JwtSpec
from headrace.gateway import (
    ApiKey,
    EndpointRoute,
    EnvoyGateway,
    EnvoySettings,
    GatewayPolicy,
    RevisionTarget,
    build_snapshot,
)

MODEL: Final = "mlp"
CONNECTIONS: Final = 32
OTHER_KEYS: Final = 100
LIMIT: Final = 0.85

OFF: Final = "nobody is asked"
KEY: Final = "an API key"
TOKEN: Final = "a token (RS256)"  # noqa: S105  # an arm's name

_KEY: Final = f"hr_{'0' * 12}_{'s' * 43}"
_ISSUER: Final = "https://id.example"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def run(context: Context) -> SuiteResult:
    """Measure the same requests with and without credentials."""
    return asyncio.run(_run(context))


async def _run(context: Context) -> SuiteResult:
    path, cores, home = context.models[MODEL], context.placement.server, context.home
    socket = home / "r.sock"
    row = one_row()
    signer = rsa.generate_private_key(65537, 2048)
    shown: dict[str, dict[str, str]] = {
        OFF: {},
        KEY: {"x-api-key": _KEY},
        TOKEN: {"authorization": f"Bearer {_token(signer)}"},
    }
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(systems.replica(path, name=MODEL, cores=cores, home=home, uds=socket))
        arms = []
        for number, (name, headers) in enumerate(shown.items()):
            access = None if name == OFF else EndpointAccess()
            gateway = await stack.enter_async_context(
                _gateway(home / f"g{number}", _endpoint(socket, access), _policy(signer))
            )
            pid = gateway.pid or 0
            cpu.pin(pid, set(cores))
            payload = json_payload(MODEL, row).with_headers(headers)
            port = gateway.settings.http_port
            verify.check_http(name, port, payload, models.run_bare(path, row))
            load = context.load([payload], name=f"auth{number}", connections=CONNECTIONS)
            arms.append(_with_cost(http_arm(name, port, load), pid, load.seconds))
        rounds = interleave(arms, rounds=context.rounds)
    return SuiteResult(name="auth", table=_table(rounds), targets=_targets(rounds), rounds=rounds)


def _with_cost(arm: Arm, pid: int, seconds: float) -> Arm:
    """`arm`, which also tells how long Envoy worked for each request."""

    def measure() -> Mapping[str, float]:
        before = _worked_s(pid)
        figures = arm.measure()
        worked_s = _worked_s(pid) - before
        return {**figures, "envoy_us": 1e6 * worked_s / (figures["rps"] * seconds)}

    return Arm(name=arm.name, measure=measure)


def _worked_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@contextlib.asynccontextmanager
async def _gateway(
    run_dir: Path, endpoint: EndpointRoute, policy: GatewayPolicy
) -> AsyncIterator[EnvoyGateway]:
    http, grpc = processes.free_ports(2)
    settings = EnvoySettings(run_dir=run_dir, http_port=http, grpc_port=grpc, concurrency=1)
    gateway = EnvoyGateway(settings)
    os.environ.update(processes.environment(systems.ENVOY))  # Envoy is one of ours, and says so
    await gateway.start(build_snapshot(settings, [endpoint], policy))
    try:
        yield gateway
    finally:
        await gateway.stop(1.0)


def _endpoint(socket: Path, access: EndpointAccess | None) -> EndpointRoute:
    arm = RevisionTarget(version="1", replicas=(f"unix:{socket}",), weight=100)
    return EndpointRoute(name=MODEL, arms=(arm,), access=access)


def _policy(signer: rsa.RSAPrivateKey) -> GatewayPolicy:
    jwk = json.loads(RSAAlgorithm.to_jwk(signer.public_key()))
    provider = JwtSpec(name="corp", issuer=_ISSUER, audiences=("gateway",), jwks_file="-")
    return GatewayPolicy(
        access=AccessSettings(jwt=(provider,)),
        keys=tuple(_keys()),
        key_sets={"corp": json.dumps({"keys": [jwk]})},
    )


def _keys() -> Iterator[ApiKey]:
    for number in range(OTHER_KEYS):
        key = _KEY if number == 0 else f"hr_{number:012}_{'s' * 43}"
        yield ApiKey(
            id=key.split("_")[1],
            name=f"robot-{number}",
            digest=hashlib.sha256(key.encode()).hexdigest(),
            scopes=(f"infer:{MODEL}",),
        )


def _token(signer: rsa.RSAPrivateKey) -> str:
    now = int(SystemClock().now())
    claims: dict[str, Any] = {
        "iss": _ISSUER,
        "aud": "gateway",
        "sub": "248289761001",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "jti": "0e9f3b0a-9d0f-4c1e-8a57-1d3c5cf2f8c6",
        "scope": f"openid profile infer:{MODEL}",
    }
    return jwt.encode(claims, signer, algorithm="RS256")


def _table(rounds: Rounds) -> Table:
    return Table(
        headings=["asked for", "requests/s", "times open", "p50 us", "p99 us", "Envoy us"],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "rps")),
                cell(ratio(rounds, arm, OFF, "rps"), 2),
                cell(figure(rounds, arm, "p50_us")),
                cell(figure(rounds, arm, "p99_us")),
                cell(figure(rounds, arm, "envoy_us"), 1),
            ]
            for arm in rounds
        ],
    )


def _targets(rounds: Rounds) -> list[Target]:
    return [
        Target(
            text=f"throughput with {arm}, times open",
            value=ratio(rounds, arm, OFF, "rps").median,
            limit=LIMIT,
        )
        for arm in (KEY, TOKEN)
    ]
