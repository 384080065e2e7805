"""What the notifier stores and sends, and in which order."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from headrace.control.model.alerts import AlertNotice, NoticeKey
from headrace.control.notify.messages import AlertMessage
from headrace.control.notify.notifier import Notifier
from headrace.core import DeadlineExceededError, FailedPreconditionError, UnavailableError
from tests.unit.control.notify.alert_samples import FIRING, OVER

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(slots=True)
class Lab:
    """A notifier whose store and receiver write down what reaches them."""

    log: list[str] = field(default_factory=list)
    outcome: Exception | None = None
    is_full: bool = False
    refusal: Exception = field(default_factory=lambda: FailedPreconditionError("disk full"))
    notifier: Notifier = field(init=False)

    def __post_init__(self) -> None:
        receivers = [{"name": "ops", "webhook": {"url": "https://x.example"}}]
        spec = {"alerts": {"group_wait_s": 0, "receivers": receivers}}
        self.notifier = Notifier(
            spec=lambda: spec,
            clock=self,
            silences=list,
            save=self.save,
            environment={},
            admin_url="",
            send=self.send,
        )

    def now(self) -> float:
        return FIRING.began + 20

    def monotonic(self) -> float:
        return 0.0

    async def save(self, notices: Sequence[AlertNotice], gone: Sequence[NoticeKey]) -> None:
        self.log += ["stores taken" if one.taken_at else "stores maybe" for one in notices]
        self.log += ["removes"] * len(gone)
        if self.is_full:
            raise self.refusal

    async def send(self, message: AlertMessage, **_: object) -> str:
        self.log.append("sends firing" if message.firing else "sends resolved")
        if self.outcome is not None:
            raise self.outcome
        return "200"

    async def run(self) -> list[str]:
        """The log of one turn."""
        running = asyncio.create_task(self.notifier.run())
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait({running})
        log, self.log = self.log, []
        return log


async def test_a_notice_is_stored_before_the_message_leaves_and_after_it_was_taken() -> None:
    lab = Lab()
    lab.notifier.offer([FIRING])

    firing = await lab.run()
    lab.notifier.offer([OVER])
    resolved = await lab.run()

    assert firing == ["stores maybe", "sends firing", "stores taken"]
    assert resolved == ["sends resolved", "removes"]


async def test_nobody_is_told_an_end_before_the_alerts_were_read() -> None:
    lab = Lab()
    lab.notifier.load([AlertNotice(receiver="ops", alert=FIRING, taken_at=1.0)])

    unread = await lab.run()
    lab.notifier.offer([])
    read = await lab.run()

    assert unread == []
    assert read == ["sends resolved", "removes"]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (UnavailableError("it answered 503", retry_after_s=None), ["removes"]),
        (DeadlineExceededError("it did not answer"), []),
        (ValueError("a bug"), []),
    ],
)
async def test_only_a_receiver_that_refused_counts_as_not_told(
    outcome: Exception, expected: list[str]
) -> None:
    lab = Lab(outcome=outcome)
    lab.notifier.offer([FIRING])

    log = await lab.run()

    assert log == ["stores maybe", "sends firing", *expected]


@pytest.mark.parametrize(
    "refusal", [FailedPreconditionError("disk full"), RuntimeError("a fault of the store")]
)
async def test_a_store_that_fails_keeps_no_message_back_and_is_tried_again(
    refusal: Exception,
) -> None:
    lab = Lab(is_full=True, refusal=refusal)
    lab.notifier.offer([FIRING])

    first = await lab.run()
    lab.is_full = False
    second = await lab.run()

    assert first == ["stores maybe", "sends firing", "stores taken"]
    assert second == ["stores taken"]
