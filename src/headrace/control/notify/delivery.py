"""Bodies of alert messages, and their delivery by HTTP and SMTP in bounded time."""


# ruff: noqa: PLC0415  # most systems send no alerts, and every start would load these modules

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.control.base.settings import resolve_references, resolve_url
from headrace.control.notify.messages import AlertMessage
from headrace.core import DeadlineExceededError, UnavailableError
from headrace.core.spec.alerts import EmailSpec, SlackSpec, WebhookSpec
from headrace.monitor.alert_state import Alert, AlertState

Json = dict[str, Any]
_NEVER: Final = "0001-01-01T00:00:00Z"
_COLOURS: Final = {"page": "#c62828", "ticket": "#ef6c00"}
_GOOD: Final = "#2e7d32"


def webhook_payload(message: AlertMessage, *, url: str) -> Json:
    """Return the JSON body in Alertmanager's webhook format.

    Source: https://prometheus.io/docs/alerting/latest/configuration/

    Args:
        url: Link to the console.
    """
    alerts = [_webhook_alert(alert, url) for alert in _all(message)]
    labels = [alert["labels"] for alert in alerts]
    group = {"endpoint": message.endpoint}
    if message.stream:
        group = {"stream": message.stream}
    labelled = ", ".join(f'{name}="{value}"' for name, value in group.items())
    return {
        "version": "4",
        "groupKey": f"{{}}:{{{labelled}}}",
        "truncatedAlerts": 0,
        "status": "firing" if message.firing else "resolved",
        "receiver": message.receiver.name,
        "groupLabels": group,
        "commonLabels": _common(labels),
        "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
        "externalURL": url,
        "alerts": alerts,
    }


def slack_payload(message: AlertMessage, *, url: str) -> Json:
    """Return the JSON body for incoming webhooks of Slack and Mattermost."""
    attachments = [
        {
            "color": _GOOD if _is_over(alert) else _COLOURS.get(alert.severity, _GOOD),
            "title": f"{_word(alert)}: {alert.name}",
            "title_link": url,
            "text": _escaped(alert.summary if _is_over(alert) else _describe(alert)),
            "ts": int(alert.since),
        }
        for alert in _all(message)
    ]
    spec = message.receiver.slack
    channel = {"channel": spec.channel} if spec is not None and spec.channel else {}
    return {**channel, "text": _escaped(title(message)), "attachments": attachments}


def email_message(message: AlertMessage, spec: EmailSpec, *, url: str, now: float) -> EmailMessage:
    """Return the message as a plain text email."""
    mail = EmailMessage()
    mail["Subject"] = title(message)
    mail["From"] = spec.sender
    mail["To"] = ", ".join(spec.to)
    mail["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    mail["Message-ID"] = make_msgid(domain=spec.sender.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"
    parts = [
        f"{_word(alert)}: {alert.name} ({alert.severity}), since {_time(alert.since)}\n"
        f"{alert.summary if _is_over(alert) else _describe(alert)}\n"
        for alert in _all(message)
    ]
    mail.set_content("\n".join([*parts, url, ""]))
    return mail


def title(message: AlertMessage) -> str:
    """Return a one-line summary of the message."""
    location = message.endpoint or (f"stream {message.stream}" if message.stream else "the system")
    alerts = message.firing or message.resolved
    worst = "page" if any(alert.severity == "page" for alert in alerts) else "ticket"
    first = next(alert for alert in alerts if alert.severity == worst)
    more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
    return f"[{worst if message.firing else 'resolved'}] {location}: {first.name}{more}"


def _all(message: AlertMessage) -> list[Alert]:
    return [*message.firing, *message.resolved]


def _webhook_alert(alert: Alert, url: str) -> Json:
    about = {"stream": alert.stream} if alert.stream else {"endpoint": alert.endpoint}
    labels = {"alertname": alert.name, **about, "severity": alert.severity}
    identity = "\0".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return {
        "status": "resolved" if _is_over(alert) else "firing",
        "labels": labels,
        "annotations": {"summary": alert.summary, "action": alert.action},
        "startsAt": _time(alert.began),
        "endsAt": _time(alert.since) if _is_over(alert) else _NEVER,
        "generatorURL": url,
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest()[:16],
    }


def _common(items: list[dict[str, str]]) -> dict[str, str]:
    """Return the key-value pairs that all `items` share."""
    first = items[0] if items else {}
    return {k: v for k, v in first.items() if all(item.get(k) == v for item in items)}


def _is_over(alert: Alert) -> bool:
    return alert.state is AlertState.RESOLVED


def _word(alert: Alert) -> str:
    return "resolved" if _is_over(alert) else "firing"


def _describe(alert: Alert) -> str:
    return f"{alert.summary}\n{alert.action}"


def _time(timestamp: float) -> str:
    return (
        datetime.fromtimestamp(timestamp, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _escaped(text: str) -> str:
    """Return `text` with Slack's three control characters escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


TIMEOUT_S: Final = 10.0
"""Timeout in seconds for each answer of a server."""
_ALL_S: Final = 30.0
_SHOWN: Final = 200


async def send(
    message: AlertMessage, *, environment: Mapping[str, str], admin_url: str, now: float
) -> str:
    """Send a message; return the receiver's answer, such as `200` or `SMTP 250`.

    Args:
        environment: Variables that replace `${NAME}` in a URL.
        admin_url: Link to the console.

    Raises:
        DeadlineExceededError: No complete answer came; the receiver may have accepted the message.
        HeadraceError: The receiver did not accept it; the text contains none of its secrets.
    """
    try:
        async with asyncio.timeout(_ALL_S):
            return await _in_thread(lambda: _send(message, environment, admin_url, now))
    except TimeoutError:
        raise DeadlineExceededError(f"it did not answer within {_ALL_S:g} s") from None


async def _in_thread(work: Callable[[], str]) -> str:
    """Run `work` in a daemon thread, so that the process's end does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def finish(answer: str, error: Exception | None) -> None:
        if done.done():
            return  # the caller was cancelled
        if error is None:
            done.set_result(answer)
        else:
            done.set_exception(error)

    def run() -> None:
        answer, error = "", None
        try:
            answer = work()
        except Exception as raised:  # noqa: BLE001  # raised in the caller
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
            loop.call_soon_threadsafe(finish, answer, error)

    threading.Thread(target=run, daemon=True, name="notify").start()
    return await done


def _send(message: AlertMessage, environment: Mapping[str, str], admin_url: str, now: float) -> str:

    receiver = message.receiver
    if receiver.email is not None:
        mail = email_message(message, receiver.email, url=admin_url, now=now)
        return _send_email(mail, receiver.email)
    if receiver.slack is not None:
        return _post(_url(receiver.slack, environment), slack_payload(message, url=admin_url), {})
    assert receiver.webhook is not None, "checked by the spec"
    token = _secret(receiver.webhook.token_file)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    body = webhook_payload(message, url=admin_url)
    return _post(_url(receiver.webhook, environment), body, headers)


def _send_email(mail: "EmailMessage", spec: EmailSpec) -> str:
    import smtplib
    import ssl

    password = _secret(spec.password_file)
    context = ssl.create_default_context()
    is_offered = False
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
            is_offered = True
            server.send_message(mail)
    except (OSError, ValueError, smtplib.SMTPException) as error:
        reason = _hidden(str(error), password)[:_SHOWN] or type(error).__name__
        message = f"the mail server {spec.host}:{spec.port} rejected the message: {reason}"
        # A server's error reply is definite; a lost connection may have delivered the message.
        is_lost = isinstance(error, smtplib.SMTPServerDisconnected) or not isinstance(
            error, smtplib.SMTPException
        )
        if is_offered and is_lost:
            raise DeadlineExceededError(message) from None
        raise UnavailableError(message, retry_after_s=None) from None
    return "SMTP 250"


def _hidden(text: str, *secrets: str) -> str:
    """Return a receiver's `text` without secrets, because it may repeat what was sent."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _url(spec: WebhookSpec | SlackSpec, environment: Mapping[str, str]) -> str:
    if spec.url_file is not None:
        return _secret(spec.url_file)
    assert spec.url is not None, "checked by the spec"
    return resolve_url(spec.url, environment)


def _secret(path: str | None) -> str:
    return "" if path is None else resolve_references(f"file:{path}")


def _post(url: str, document: object, headers: Mapping[str, str]) -> str:
    """POST a document as JSON; no redirects, because they would forward a token."""
    import http.client
    import json

    body = json.dumps(document).encode()
    headers = {"content-type": "application/json", "connection": "close", **headers}
    is_offered = False
    try:
        parts = urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kind[parts.scheme](parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        try:
            path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
            connection.connect()
            is_offered = True
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read(_SHOWN).decode("utf-8", "replace")
        finally:
            connection.close()
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        # Omit the error's text: it may contain the URL, and Slack's webhook URL is a secret.
        if is_offered:
            reason = f"it did not answer: {type(error).__name__}"
            raise DeadlineExceededError(reason) from None
        reason = f"it cannot be reached: {type(error).__name__}"
        raise UnavailableError(reason, retry_after_s=None) from None
    if http.client.OK <= status < http.client.MULTIPLE_CHOICES:
        return str(status)
    text = _hidden(text, url, path, headers.get("authorization", "").partition(" ")[2])
    reason = f"it answered {status}: {text}"
    if status in {http.client.BAD_GATEWAY, http.client.GATEWAY_TIMEOUT}:
        raise DeadlineExceededError(reason)  # the server behind it may have accepted
    raise UnavailableError(reason, retry_after_s=None)
