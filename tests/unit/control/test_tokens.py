"""The ledger of tokens: each counted once, whoever restarts."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.agents.messages import Arm, EnvoyCounts
from headrace.control.model.records import Event, TokenReading
from headrace.control.state import home_url, open_store
from headrace.control.state.store import Store
from headrace.control.telemetry.tokens import TokenLedger, increase
from headrace.core import UnavailableError
from headrace.gateway import TokenStatistics
from headrace.gateway.statistics import TokenUse, sum_tokens

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0


class Clock:
    """A clock that a test sets."""

    wall = 0.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.wall


class Gateway:
    """Counts of one Envoy after the other."""

    def __init__(self) -> None:
        self.epoch = 0
        self.counts: tuple[TokenUse, ...] = ()
        self.is_away = False
        self.first_tokens: dict[tuple[float, float], int] = {}

    async def statistics(self) -> TokenStatistics:
        if self.is_away:
            raise UnavailableError("away")
        times = {"first_token_us": {("chat", "2"): dict(self.first_tokens)}}
        return TokenStatistics(epoch=str(self.epoch), counts=self.counts, times=times)

    def add(self, key: str, credential: str, tokens: int) -> None:
        use = TokenUse(endpoint="chat", version=key, credential=credential, input=tokens, output=1)
        self.counts = sum_tokens([*self.counts, use])

    def restart(self) -> None:
        self.epoch += 1
        self.counts = ()


def a_ledger(
    store: Store,
    gateway: Gateway,
    clock: Clock,
    events: list[Event] | None = None,
    *,
    path: Path | None = None,
) -> TokenLedger:
    async def emit(more: Sequence[Event]) -> None:
        if events is not None:
            events.extend(more)

    return TokenLedger(
        statistics=gateway.statistics, store=store, clock=clock, emit=emit, path=path
    )


async def test_tokens_are_counted_once_over_restarts_of_both(tmp_path: Path) -> None:
    store, gateway, clock = open_store(home_url(tmp_path)), Gateway(), Clock()
    ledger = a_ledger(store, gateway, clock)
    gateway.add("2", "key:alice", 10)
    gateway.add("2", "key:alice", 5)
    gateway.add("2", "", 1)
    await asyncio.gather(*(ledger.poll() for _ in range(5)))
    gateway.add("2", "key:alice", 7)
    ledger = a_ledger(store, gateway, clock)  # the control plane crashed
    await ledger.poll()
    gateway.is_away = True
    await ledger.poll()
    gateway.is_away = False
    gateway.restart()
    gateway.add("2", "key:alice", 3)
    clock.wall = DAY_S
    days = await ledger.between("1970-01-01", "1970-01-02")

    def use(day: str, credential: str, tokens: int, answers: int) -> TokenUse:
        return TokenUse(
            day=day, endpoint="chat", version="2", credential=credential, input=tokens,
            output=answers,
        )  # fmt: skip

    assert days == [
        use("1970-01-01", "", 1, 1),
        use("1970-01-01", "key:alice", 22, 3),
        use("1970-01-02", "key:alice", 3, 1),
    ]
    assert await ledger.between("1970-01-02", "1970-01-02") == days[2:]
    store.close()


async def test_the_history_has_tokens_and_times_to_the_first_token(tmp_path: Path) -> None:
    store, gateway, clock = open_store(home_url(tmp_path)), Gateway(), Clock()
    path = tmp_path / "tokens.bin"
    ledger = a_ledger(store, gateway, clock, path=path)
    for second in range(0, 60, 5):
        clock.wall = 1000.0 + second
        for credential in ("", "key:alice"):
            gateway.add("2", credential, 10)
        gateway.first_tokens[0.2, 0.01] = second // 5
        await ledger.poll()
    running = asyncio.create_task(ledger.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    ledger = a_ledger(store, gateway, clock, path=path)
    ledger.load()
    window = ledger.history.window("chat", until=1055.0, seconds=50.0)
    clock.wall = 100.0  # set back
    await ledger.poll()
    store.close()

    assert window.requests_per_s == pytest.approx(2 / 5, rel=0.05)
    assert window.quantile(0.5) == pytest.approx(0.2, rel=0.06)
    assert ledger.history.looked_at == 100.0


async def test_tokens_of_gateways_on_other_hosts_are_counted_once_and_those_lost_are_told(
    tmp_path: Path,
) -> None:
    store, clock = open_store(home_url(tmp_path)), Clock()
    events: list[Event] = []
    hosts = {name: Gateway() for name in ("a", "b")}
    reports: dict[str, EnvoyCounts] = {}

    async def report(*names: str) -> None:
        for name in names:
            found = await hosts[name].statistics()
            streams = tuple(Arm.of(arm, totals) for arm, totals in found.streams.items())
            reports[name] = EnvoyCounts(epoch=found.epoch, tokens=found.counts, streams=streams)

    def start() -> TokenLedger:
        ledger = a_ledger(store, Gateway(), clock, events)
        ledger.agents = lambda: reports
        return ledger

    ledger = start()
    for _ in range(3):
        for host in hosts.values():
            host.add("2", "key:alice", 10)
        await report("a", "b")
        await ledger.poll()
        await ledger.poll()  # the same reports
        clock.wall += 1.0
    ledger = start()  # the control plane crashed
    del reports["b"]  # away
    hosts["b"].add("2", "key:alice", 5)
    await ledger.poll()
    clock.wall += 1.0
    await report("b")  # back, of the same run
    await ledger.poll()
    clock.wall += 1.0
    hosts["b"].restart()
    hosts["b"].add("2", "key:alice", 7)
    await report("b")
    (use,) = await ledger.between("1970-01-01", "1970-01-01")
    window = ledger.history.window("chat", until=5.0, seconds=5.0, version="2")
    clock.wall = 9 * DAY_S
    hosts["a"].add("2", "key:alice", 1)
    await report("a")
    del reports["b"]
    await ledger.poll()
    is_kept = [store.token_reading.blocking(f"agent:{name}") is not None for name in ("a", "b")]
    store.close()

    assert (use.input, use.output) == (2 * 30 + 5 + 7, 2 * 3 + 1 + 1)
    assert [event.reason for event in events] == ["TokensLost"]
    assert "gateway 'b' ended" in events[0].message
    assert window.requests_per_s > 0
    assert is_kept == [True, False]


@pytest.mark.parametrize(("polls_while_away", "seconds"), [(1, 1.0), (0, 4.0)])
async def test_a_gateway_that_ends_loses_at_most_what_came_since_the_last_poll(
    tmp_path: Path, polls_while_away: int, seconds: float
) -> None:
    store, gateway, clock = open_store(home_url(tmp_path)), Gateway(), Clock()
    events: list[Event] = []
    ledger = a_ledger(store, gateway, clock, events)
    for _ in range(3):  # 100 of the prompt and one of the answer each second
        gateway.add("2", "", 100)
        await ledger.poll()
        clock.wall += 1.0
    gateway.add("2", "", 70)  # lost
    gateway.restart()
    gateway.is_away = True
    for _ in range(polls_while_away):
        await ledger.poll()
    clock.wall += 3.0
    gateway.is_away = False
    await ledger.poll()
    await ledger.poll()
    store.close()

    (event,) = events
    assert (event.kind, event.reason) == ("gateway", "TokensLost")
    assert event.data == {"seconds": seconds, "tokens": 101 * seconds}
    assert f"up to {seconds} s" in event.message


@given(st.lists(st.tuples(st.sampled_from(["add", "restart", "read"]), st.integers(0, 50))))
def test_increases_sum_up_to_all_tokens_that_were_read(events: list[tuple[str, int]]) -> None:
    gateway, before, total, read, unread = Gateway(), None, 0, 0, 0
    for event, tokens in [*events, ("read", 0)]:
        if event == "add":
            gateway.add("1", "", tokens)
            total, unread = total + tokens, unread + tokens
        elif event == "restart":
            gateway.restart()
            total, unread = total - unread, 0  # what was not read is lost
        else:
            now = TokenReading(epoch=str(gateway.epoch), counts=gateway.counts)
            read += sum(use.input for use in increase(now, before, "1970-01-01"))
            before, unread = now, 0
    assert read == total
