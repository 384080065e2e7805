"""What an agent asks, takes and reports, and what it does while nobody answers."""

import asyncio
import gzip
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
import pytest

from headrace.control.agents.messages import (
    PROTOCOL,
    AgentInstructions,
    AgentStatus,
    Bundle,
    Poll,
    with_version,
)
from headrace.control.agents.tls import MutualTls, client_context
from headrace.control.gateway.certificates import Certificates
from headrace.control.local.sandbox import Sandbox
from headrace.core import InvalidArgumentError, UnavailableError
from headrace.core.spec.access import TlsSpec
from headrace.gateway import EndpointRoute, RevisionTarget
from headrace.gateway_agent.agent import GatewayAgent, RequestHold
from headrace.gateway_agent.applier import Applier, BundleStore
from headrace.gateway_agent.apps import Forwarding, own_families, ready_state
from headrace.gateway_agent.client import ControlResponse
from headrace.gateway_agent.settings import AgentSettings, control_address, gateway_settings
from headrace.testing import LoopClock, VirtualTimeLoop
from tests.metrics import exposed
from tests.unit.control.agents.test_messages import BUNDLE

pytestmark = pytest.mark.anyio
TLS = TlsSpec(certificate_file="c", key_file="k", client_ca_file="a")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@dataclass
class FakeControl:
    """Answers polls from a list, then nothing new after their wait; keeps reports."""

    answers: list[AgentInstructions | Exception] = field(default_factory=list)
    polls: list[Poll] = field(default_factory=list)
    reports: list[AgentStatus] = field(default_factory=list)
    is_deaf: bool = False

    async def poll(self, poll: Poll) -> AgentInstructions:
        self.polls.append(poll)
        if not self.answers:
            await asyncio.sleep(poll.wait_s)
            return AgentInstructions(protocol=PROTOCOL, control="1", ask=poll.request_number)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def report(self, report: AgentStatus) -> None:
        if self.is_deaf:
            raise UnavailableError("no answer")
        self.reports.append(report)


class FakeApplier(Applier):
    """Has no Envoy: takes every bundle, or fails as it is told."""

    failure: Exception | None = None
    failures_left: int = 0
    """How often what was kept cannot be served."""

    async def restore(self, *, may_fall_back: bool = False) -> None:
        await asyncio.sleep(0)
        if self.failures_left > 0:
            self.failures_left -= 1
            raise UnavailableError("port 8000 is in use")
        self.in_force = self.store.read() or (self.store.read_fallback() if may_fall_back else None)

    async def apply(self, bundle: Bundle) -> None:
        if self.failure is not None:
            raise self.failure
        self.in_force = bundle


def applier(directory: Path) -> FakeApplier:
    clock = LoopClock(0.0)
    return FakeApplier(
        settings=AgentSettings(control="https://c:1", tls=TLS, name="gw", dir=directory),
        run_dir=directory / "run" / "envoy",
        control_socket=directory / "control.sock",
        store=BundleStore(directory / "bundle.json"),
        tls=MutualTls(
            certificates=Certificates(clock=clock),
            directory=directory,
            context=client_context(),
            is_server=False,
        ),
        clock=clock,
        sandbox=Sandbox.of_home(directory),
    )


def agent(directory: Path, control: FakeControl) -> GatewayAgent:
    return GatewayAgent(
        name="gw",
        applier=applier(directory),
        client=control,
        clock=LoopClock(0.0),
        rng=Random(1),  # noqa: S311  # spreads retries; nobody must not guess it
        url="https://gw.lan",
    )


def told(*, ask: int = 0, bundle: Bundle | None = None) -> AgentInstructions:
    return AgentInstructions(protocol=PROTOCOL, control="1", ask=ask, bundle=bundle)


async def run_for(found: GatewayAgent, seconds: float) -> None:
    task = asyncio.ensure_future(found.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait({task})


async def test_what_is_told_is_in_force_and_reported(tmp_path: Path) -> None:
    control = FakeControl([told(ask=3, bundle=BUNDLE)])
    found = agent(tmp_path, control)

    await run_for(found, 0.5)

    polls = [(poll.held, poll.request_number) for poll in control.polls]
    assert polls == [("", 0), (BUNDLE.version, 3)]
    report = control.reports[-1]
    assert (report.in_force, report.ask, report.url) == (BUNDLE.version, 3, "https://gw.lan")


async def test_it_reports_each_second_and_at_once_when_it_is_asked(tmp_path: Path) -> None:
    control = FakeControl([told(bundle=BUNDLE)])
    found = agent(tmp_path, control)

    await run_for(found, 5.5)

    assert 5 <= len(control.reports) <= 7


async def test_a_control_plane_that_is_away_changes_nothing_and_is_asked_again(
    tmp_path: Path,
) -> None:
    away = [UnavailableError("no answer"), InvalidArgumentError("no message")]
    control = FakeControl([told(bundle=BUNDLE), *away, *away])
    found = agent(tmp_path, control)

    await run_for(found, 10.0)

    assert found.applier.in_force == BUNDLE
    assert found.failures == 4
    assert found.disconnect_reason == "", "it answered in the end"
    assert len(control.polls) < 10, "with pauses"


async def test_what_was_kept_is_tried_again_for_as_long_as_nobody_knows_better(
    tmp_path: Path,
) -> None:
    control = FakeControl([UnavailableError("no answer")] * 1000, is_deaf=True)
    found = agent(tmp_path, control)
    assert isinstance(found.applier, FakeApplier)
    found.applier.store.write(BUNDLE)
    found.applier.failures_left = 6

    await run_for(found, 30.0)

    assert found.applier.in_force == BUNDLE
    assert found.applier.problem == ""


async def test_without_a_control_plane_a_first_start_has_the_copy_of_other_gateways(
    tmp_path: Path,
) -> None:
    away = UnavailableError("no answer")
    copy = tmp_path / "copy"
    copy.write_bytes(gzip.compress(msgspec.json.encode(BUNDLE)))
    newer = with_version(msgspec.structs.replace(BUNDLE, routes=()))

    def begun(
        *answers: AgentInstructions | Exception, stored: Bundle | None = None
    ) -> GatewayAgent:
        found = agent(tmp_path, FakeControl([*answers, *[away] * 9]))
        store = found.applier.store = BundleStore(tmp_path / f"{len(answers)}.json", copy)
        if stored is not None:
            store.write(stored)
        return found

    alone, heard, again = begun(), begun(told(bundle=newer)), begun(away, away, stored=newer)
    for found in (alone, heard, again):
        await run_for(found, 0.5)

    assert alone.applier.in_force == BUNDLE
    assert heard.applier.in_force == again.applier.in_force == newer


def test_what_could_not_be_kept_is_kept_when_there_is_room(tmp_path: Path) -> None:
    found = applier(tmp_path / "full")
    found.in_force = BUNDLE
    found._store(BUNDLE)  # as after a version came into force
    assert found.problem.startswith("cannot store the active configuration")

    (tmp_path / "full").mkdir()
    asyncio.run(found.retry_store())

    assert found.store.read() == BUNDLE
    assert found.problem == ""


async def test_what_cannot_be_applied_is_reported_and_tried_again(tmp_path: Path) -> None:
    control = FakeControl([told(bundle=BUNDLE)] * 3)
    found = agent(tmp_path, control)
    assert isinstance(found.applier, FakeApplier)
    found.applier.failure = UnavailableError("port 8000 is in use")

    await run_for(found, 1.5)

    assert control.reports[-1].problem == "port 8000 is in use"
    assert len(control.polls) >= 3
    state = ready_state(found)
    assert not state.ready
    assert state.problem == "port 8000 is in use"


class EnvoylessApplier(Applier):
    """Looks at a bundle as any other; what is good enough is in force at once."""

    async def _activate(self, bundle: Bundle) -> None:
        self.in_force = bundle


def test_why_a_version_was_refused_is_told_for_as_long_as_it_may_come_again(
    tmp_path: Path,
) -> None:
    found = agent(tmp_path, FakeControl())
    fake = applier(tmp_path)
    found.applier = EnvoylessApplier(
        settings=fake.settings,
        run_dir=fake.run_dir,
        control_socket=fake.control_socket,
        store=fake.store,
        tls=fake.tls,
        clock=fake.clock,
        sandbox=fake.sandbox,
    )
    arm = RevisionTarget(version="1", replicas=("unix:/elsewhere/http.sock",), weight=100)
    here = msgspec.structs.replace(BUNDLE, sockets=None)
    good = with_version(here)
    bad = with_version(
        msgspec.structs.replace(
            here, routes=(EndpointRoute(name="m", timeout_s=None, arms=(arm,)),)
        )
    )

    asyncio.run(found.applier.apply(bad))
    assert found.applier.is_refusing
    assert "listen on Unix sockets" in ready_state(found).problem
    asyncio.run(found.applier.apply(good))

    # It is not sent again to who refused it, so this is all that anybody hears of it.
    report = asyncio.run(found._state())
    assert (report.refused, report.in_force) == (bad.version, good.version)
    assert "listen on Unix sockets" in report.reason
    assert not found.applier.is_refusing
    assert ready_state(found).problem == ""


async def test_a_report_that_nobody_hears_keeps_who_waits(tmp_path: Path) -> None:
    control = FakeControl(is_deaf=True)
    found = agent(tmp_path, control)
    found.applier.in_force = BUNDLE
    found.holding.activator.refuse_large("m")

    await run_for(found, 3.0)
    assert found.holding.held() == {"m": 1}
    control.is_deaf = False
    await run_for(found, 3.0)

    assert control.reports[0].held == {"m": 1}
    assert found.holding.held() == {}


async def test_metrics_say_when_the_control_plane_was_heard(tmp_path: Path) -> None:
    found = agent(tmp_path, FakeControl())
    assert "headrace_agent_heard_seconds 0" not in exposed(own_families(found))

    await run_for(found, 1.5)

    assert "headrace_agent_ready 0" in exposed(own_families(found))
    assert "headrace_agent_answers_total" in exposed(own_families(found))


async def test_a_request_waits_as_long_as_its_endpoint_is_held() -> None:
    bundles: list[Bundle | None] = [BUNDLE]
    pokes: list[int] = []
    holding = RequestHold(in_force=lambda: bundles[0], notify=lambda: pokes.append(1))
    waiting = asyncio.ensure_future(holding.activator.hold("m"))
    await asyncio.sleep(0.5)
    holding.release()
    assert not waiting.done()
    assert (holding.held(), pokes) == ({"m": 1}, [1])

    bundles[0] = msgspec.structs.replace(BUNDLE, holds={})
    holding.release()

    assert await waiting is None


async def test_a_held_request_is_told_when_nobody_came_in_time() -> None:
    holding = RequestHold(in_force=lambda: BUNDLE, notify=lambda: None)

    error = await holding.activator.hold("m")

    assert "not ready 2 s after the request arrived" in str(error)


@dataclass
class FakeAsked:
    answer: ControlResponse | Exception
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)

    async def forward(
        self, method: str, path: str, body: bytes, *, content_type: str
    ) -> ControlResponse:
        assert content_type
        self.asked.append((method, path, body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def forwarded(
    asked: FakeAsked, *, content_type: bytes = b"application/json", body: bytes = b"{}"
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": b"/v2/models/stats",
        "query_string": b"a=b",
        "headers": [(b"content-type", content_type)],
    }
    await Forwarding(client=asked)(scope, receive, send)
    status, headers, content = sent[0]["status"], sent[0]["headers"], sent[1]["body"]
    assert isinstance(status, int)
    assert isinstance(headers, list)
    assert isinstance(content, bytes)
    return status, dict(headers), content


async def test_what_only_the_control_plane_knows_is_asked_there() -> None:
    asked = FakeAsked(ControlResponse(status=404, content_type="text/plain", body=b"no"))

    assert (await forwarded(asked))[::2] == (404, b"no")
    assert asked.asked == [("POST", "/v2/models/stats?a=b", b"{}")]


async def test_without_a_control_plane_the_caller_learns_why() -> None:
    asked = FakeAsked(UnavailableError("no answer from there"))

    status, headers, content = await forwarded(asked)
    grpc_status, grpc_headers, _ = await forwarded(asked, content_type=b"application/grpc")
    large, _, _ = await forwarded(asked, body=b"x" * (2 << 20))

    assert (status, headers[b"retry-after"]) == (503, b"5")
    assert b"only the control plane can answer this" in content
    assert (grpc_status, grpc_headers[b"grpc-status"]) == (200, b"14")
    assert large == 503


@pytest.mark.parametrize(
    "url",
    ["http://c:8443", "c:8443", "https://", "https://c:99999", "https://c/path", "https://u@c"],
)
def test_a_control_plane_is_reached_by_https_only(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--control"):
        control_address(url)


def test_what_is_common_meets_what_is_this_gateways_own(tmp_path: Path) -> None:
    settings = AgentSettings(
        control="https://[fd00::1]", tls=TLS, name="gw", dir=tmp_path, http_port=9, grpc_port=10
    )

    found = gateway_settings(
        settings,
        BUNDLE.options,
        run_dir=tmp_path / "envoy",
        control_socket=tmp_path / "control.sock",
    )

    assert control_address(settings.control) == ("fd00::1", 8443)
    assert found.ports == (9, 10)
    assert found.limits_target is not None
    assert (found.limits_target.host, found.limits_target.port) == ("fd00::1", 8444)
    assert found.has_limits
    assert found.max_body_bytes == BUNDLE.options.max_body_bytes
