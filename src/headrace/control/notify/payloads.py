"""Bodies of messages for webhooks, Slack and email. Pure."""

import hashlib
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import Any, Final

from headrace.control.notify.outbox import Message
from headrace.core.spec_alerts import EmailSpec
from headrace.monitor.alert_state import Alert, AlertState

Json = dict[str, Any]

_NEVER: Final = "0001-01-01T00:00:00Z"
_COLOURS: Final = {"page": "#c62828", "ticket": "#ef6c00"}
_GOOD: Final = "#2e7d32"


def webhook_payload(message: Message, *, url: str) -> Json:
    """As Alertmanager sends it (https://prometheus.io/docs/alerting/latest/configuration/).

    Args:
        url: Where one sees more.
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


def slack_payload(message: Message, *, url: str) -> Json:
    """As Slack's incoming webhooks take it, and Mattermost's."""
    attachments = [
        {
            "color": _GOOD if _is_over(alert) else _COLOURS.get(alert.severity, _GOOD),
            "title": f"{_word(alert)}: {alert.name}",
            "title_link": url,
            "text": _escaped(alert.summary if _is_over(alert) else _told(alert)),
            "ts": int(alert.since),
        }
        for alert in _all(message)
    ]
    spec = message.receiver.slack
    channel = {"channel": spec.channel} if spec is not None and spec.channel else {}
    return {**channel, "text": _escaped(title(message)), "attachments": attachments}


def email_message(message: Message, spec: EmailSpec, *, url: str, now: float) -> EmailMessage:
    """A plain text for people."""
    mail = EmailMessage()
    mail["Subject"] = title(message)
    mail["From"] = spec.sender
    mail["To"] = ", ".join(spec.to)
    mail["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    mail["Message-ID"] = make_msgid(domain=spec.sender.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"
    parts = [
        f"{_word(alert)}: {alert.name} ({alert.severity}), since {_time(alert.since)}\n"
        f"{alert.summary if _is_over(alert) else _told(alert)}\n"
        for alert in _all(message)
    ]
    mail.set_content("\n".join([*parts, url, ""]))
    return mail


def title(message: Message) -> str:
    """What happened, in one line."""
    where = message.endpoint or (f"stream {message.stream}" if message.stream else "the system")
    alerts = message.firing or message.resolved
    worst = "page" if any(alert.severity == "page" for alert in alerts) else "ticket"
    first = next(alert for alert in alerts if alert.severity == worst)
    more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
    return f"[{worst if message.firing else 'resolved'}] {where}: {first.name}{more}"


def _all(message: Message) -> list[Alert]:
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
    """What all of them say alike."""
    first = items[0] if items else {}
    return {k: v for k, v in first.items() if all(item.get(k) == v for item in items)}


def _is_over(alert: Alert) -> bool:
    return alert.state is AlertState.RESOLVED


def _word(alert: Alert) -> str:
    return "resolved" if _is_over(alert) else "firing"


def _told(alert: Alert) -> str:
    return f"{alert.summary}\n{alert.action}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _escaped(text: str) -> str:
    """As Slack wants it: these three characters mean something there."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
