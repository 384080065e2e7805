"""How does a message get to its receiver? By HTTP or SMTP, in bounded time."""

import asyncio
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from pathlib import Path
from typing import Final

import httpx

from headrace.control.notify.outbox import Message
from headrace.control.notify.payloads import email_message, slack_payload, webhook_payload
from headrace.control.secret_references import resolve_references, resolve_url
from headrace.core import UnavailableError
from headrace.core.spec_alerts import EmailSpec, SlackSpec, WebhookSpec

TIMEOUT_S: Final = 10.0
_SHOWN: Final = 200


async def send(
    message: Message, *, environment: Mapping[str, str], admin_url: str, now: float
) -> None:
    """Return when the receiver has taken the message.

    Args:
        environment: What `${NAME}` of a URL is looked up in.
        admin_url: Where one sees more.

    Raises:
        HeadraceError: It has not; the message says why, without the receiver's secrets.
    """
    receiver = message.receiver
    if receiver.email is not None:
        mail = email_message(message, receiver.email, url=admin_url, now=now)
        # smtplib's own timeout is for each answer; a server that drips must not hold a thread up.
        async with asyncio.timeout(3 * TIMEOUT_S):
            await asyncio.to_thread(send_email, mail, receiver.email)
    elif receiver.slack is not None:
        body = slack_payload(message, url=admin_url)
        await _post(_url(receiver.slack, environment), body, {})
    elif receiver.webhook is not None:
        body = webhook_payload(message, url=admin_url)
        token = _secret(receiver.webhook.token_file)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        await _post(_url(receiver.webhook, environment), body, headers)


def send_email(mail: EmailMessage, spec: EmailSpec) -> None:
    """Hand an email to its server. Blocking.

    Raises:
        UnavailableError: It was not taken.
    """
    password = _secret(spec.password_file)
    context = ssl.create_default_context()
    try:
        if spec.tls == "always":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                spec.host, spec.port, timeout=TIMEOUT_S, context=context
            )
        else:
            server = smtplib.SMTP(spec.host, spec.port, timeout=TIMEOUT_S)
        with server:
            if spec.tls == "starttls":
                server.starttls(context=context)
            if spec.username:
                server.login(spec.username, password)
            server.send_message(mail)
    except (OSError, smtplib.SMTPException) as error:
        message = f"the mail server {spec.host}:{spec.port} did not take it: {_short(error)}"
        raise UnavailableError(message, retry_after_s=None) from error


def _url(spec: WebhookSpec | SlackSpec, environment: Mapping[str, str]) -> str:
    if spec.url_file is not None:
        return _secret(spec.url_file)
    assert spec.url is not None, "checked by the spec"
    return resolve_url(spec.url, environment)


def _secret(path: str | None) -> str:
    return "" if path is None else resolve_references(f"file:{Path(path)}")


async def _post(url: str, body: object, headers: Mapping[str, str]) -> None:
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client:
            answer = await client.post(url, json=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # Not the error's own text: it may hold the URL, which is a secret where Slack gave it.
        raise UnavailableError(f"it cannot be reached: {type(error).__name__}") from error
    if not answer.is_success:
        reason = f"it answered {answer.status_code}: {answer.text[:_SHOWN]}"
        raise UnavailableError(reason, retry_after_s=None)


def _short(error: Exception) -> str:
    return str(error)[:_SHOWN] or type(error).__name__
