"""Messages reach real servers, and what is refused is told without its secrets."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.control.model.alerts import AlertNotice, NoticeKey
from headrace.control.notify.delivery import send
from headrace.control.notify.messages import AlertMessage
from headrace.control.notify.notifier import Notifier, receiver_urls
from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    SystemClock,
    UnavailableError,
)
from tests.e2e.alerts.receivers import MailServer, web_server
from tests.unit.control.notify.alert_samples import FIRING, OVER, settings

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]
ADMIN = "http://127.0.0.1:8080"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def tell(receiver: dict[str, Any], environment: dict[str, str] | None = None) -> str:
    spec = settings({"name": "one", **receiver}).receivers[0]
    message = AlertMessage(receiver=spec, endpoint="fraud", firing=(FIRING,), resolved=())
    return await send(message, environment=environment or {}, admin_url=ADMIN, now=1764000000.0)


async def test_a_webhook_is_posted_to_with_its_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame\n")

    with web_server() as web:
        answer = await tell({"webhook": {"url": web.url, "token_file": str(token)}})

    assert answer == "200"
    assert web.bodies[0]["alerts"][0]["labels"]["alertname"] == FIRING.name
    assert web.headers[0]["authorization"] == "Bearer open sesame"


async def test_a_url_may_stand_in_a_file_or_in_the_environment(tmp_path: Path) -> None:
    with web_server() as web:
        (tmp_path / "url").write_text(f"{web.url}\n")
        await tell({"slack": {"url_file": str(tmp_path / "url")}})
        await tell({"slack": {"url": "${SLACK_URL}"}}, {"SLACK_URL": web.url})

    assert [body["text"] for body in web.bodies] == ["[page] fraud: HeadraceLatencyP95"] * 2


async def test_a_url_that_is_missing_is_told() -> None:
    with pytest.raises(FailedPreconditionError, match="no variable SLACK_URL"):
        await tell({"slack": {"url": "${SLACK_URL}"}})


async def test_what_a_server_refuses_is_told_without_the_url_and_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret2")
    with (
        web_server(refuses=1) as web,
        pytest.raises(UnavailableError, match="answered 503") as refused,
    ):
        await tell({"webhook": {"url": f"{web.url}?secret=1", "token_file": str(token)}})
    with pytest.raises(UnavailableError, match="cannot be reached") as gone:
        await tell({"webhook": {"url": f"{web.url}?secret=1"}})

    assert "secret" not in f"{refused.value}{gone.value}"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 504 Late\r\ncontent-length: 0\r\n\r\n"])
async def test_a_message_whose_answer_is_lost_may_have_been_taken(answer: bytes) -> None:
    async def read_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}]}")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(read_and_leave, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(DeadlineExceededError):
            await tell({"webhook": {"url": f"http://127.0.0.1:{port}/"}})


async def test_an_email_is_handed_over() -> None:
    mail = MailServer()
    server = await asyncio.start_server(mail.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    email = {
        "to": ["ops@b.example", "boss@b.example"],
        "sender": "headrace@b.example",
        "host": "127.0.0.1",
        "port": port,
        "tls": "never",
    }

    async with server:
        await tell({"email": email})
        mail.refuses = True
        with pytest.raises(UnavailableError, match="rejected the message"):
            await tell({"email": email})
        with pytest.raises(UnavailableError, match="rejected the message"):
            await tell({"email": {**email, "tls": "starttls"}})

    (envelope, text) = mail.mails[0]
    assert len(mail.mails) == 1
    assert [line.partition(" ")[0] for line in envelope] == ["mail", "rcpt", "rcpt"]
    assert "Subject: [page] fraud: HeadraceLatencyP95" in text
    assert FIRING.action in text


@pytest.mark.long
async def test_who_refuses_is_told_again_and_nobody_waits_for_it() -> None:
    with web_server(refuses=1) as web, web_server() as other:
        receivers = [
            {"name": "ops", "webhook": {"url": web.url}},
            {"name": "other", "webhook": {"url": other.url}},
            {"name": "nobody", "webhook": {"url": "${MISSING}"}},
        ]
        spec = {"alerts": {"group_wait_s": 0, "receivers": receivers}}
        stored: dict[NoticeKey, AlertNotice] = {}

        def taken() -> set[str]:
            return {notice.receiver for notice in stored.values() if notice.taken_at is not None}

        notifier = notifier_of(spec, stored)
        running = asyncio.create_task(notifier.run())
        notifier.offer([FIRING])
        await until(lambda: taken() == {"other", "ops"})
        notifier.offer([OVER])
        await until(lambda: len(web.bodies) == len(other.bodies) == 2)
        await until(lambda: stored == {})
        running.cancel()
        await asyncio.wait({running})

    assert [body["status"] for body in web.bodies] == ["firing", "resolved"]
    assert [body["status"] for body in other.bodies] == ["firing", "resolved"]
    assert len(web.headers) == 3
    assert receiver_urls(spec) == [web.url, other.url, "${MISSING}"]


async def test_a_bug_of_a_receivers_library_ends_nobody_else() -> None:
    told: list[str] = []

    async def send_some(message: AlertMessage, **_: object) -> str:
        await asyncio.sleep(0)
        if message.receiver.name == "a":
            raise ValueError("a bug")
        told.append(message.receiver.name)
        return "200"

    receivers = [{"name": name, "webhook": {"url": "http://x"}} for name in ("a", "b")]
    spec = {"alerts": {"group_wait_s": 0, "receivers": receivers}}
    notifier = notifier_of(spec, {})
    notifier.send = send_some
    notifier.offer([FIRING])
    running = asyncio.create_task(notifier.run())
    await until(lambda: bool(told))
    running.cancel()
    await asyncio.wait({running})

    assert told == ["b"]


def notifier_of(spec: dict[str, Any], stored: dict[NoticeKey, AlertNotice]) -> Notifier:
    async def save(notices: Sequence[AlertNotice], gone: Sequence[NoticeKey]) -> None:
        for key in gone:
            del stored[key]
        stored.update((notice.key, notice) for notice in notices)

    return Notifier(
        spec=lambda: spec,
        clock=SystemClock(),
        silences=list,
        save=save,
        environment={},
        admin_url=ADMIN,
        send=send,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # a server in a thread sets no event of ours
            await asyncio.sleep(0.02)
