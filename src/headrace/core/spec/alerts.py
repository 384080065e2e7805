"""Spec part `alerts`: receivers, and when they are notified.

Secrets are in files, or in the environment as `${NAME}`; never in the spec.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, Strict, model_validator

from headrace.core.names import NAME_PATTERN
from headrace.core.spec.base import SpecModel

_DAY_S: Final = 86_400.0

_Url = Annotated[str, Field(pattern=r"^(https?://|\$\{[A-Za-z_])[^\s]+$", max_length=2048)]
_Path = Annotated[str, Field(min_length=1, max_length=4096)]
_Address = Annotated[str, Field(pattern=r"^[^\s@<>,;:]+@[^\s@<>,;:]+$", max_length=254)]


class _UrlSpec(SpecModel):
    url: _Url | None = Field(
        default=None,
        description="URL that alerts are posted to; may contain environment variables as "
        "`${NAME}`.",
    )
    url_file: _Path | None = Field(
        default=None, description="File that contains the URL, if the URL is a secret."
    )

    @model_validator(mode="after")
    def _has_url(self) -> Self:
        if (self.url is None) == (self.url_file is None):
            msg = "needs either 'url' or 'url_file'"
            raise ValueError(msg)
        return self


class WebhookSpec(_UrlSpec):
    """Receives Alertmanager's webhook format: JSON, version 4."""

    token_file: _Path | None = Field(
        default=None, description="File with the bearer token that is sent to the webhook."
    )


class SlackSpec(_UrlSpec):
    """Receives a text with attachments in the format of Slack's webhooks, as Mattermost does."""

    channel: str = Field(
        default="", max_length=80, description="Channel; empty for the webhook's default."
    )


class EmailSpec(SpecModel):
    """Receives an email."""

    to: Annotated[tuple[_Address, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=32, description="To whom."
    )
    sender: _Address = Field(description="From whom.")
    host: str = Field(min_length=1, max_length=255, description="Mail server (SMTP).")
    port: int = Field(default=587, ge=1, le=65535, description="Its port.")
    tls: Literal["starttls", "always", "never"] = Field(
        default="starttls", description="`always` encrypts from the first byte, as on port 465."
    )
    username: str = Field(default="", max_length=255, description="User name; empty for no login.")
    password_file: _Path | None = Field(default=None, description="File with the password.")

    @model_validator(mode="after")
    def _login_is_complete(self) -> Self:
        if bool(self.username) != (self.password_file is not None):
            msg = "'username' and 'password_file' must be set together"
            raise ValueError(msg)
        if self.username and self.tls == "never":
            msg = "would send the password in plain text: use another value of 'tls'"
            raise ValueError(msg)
        return self


class ReceiverSpec(SpecModel):
    """A receiver of alerts, through one channel."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the receiver.")
    severities: Annotated[tuple[Literal["page", "ticket"], ...], Strict(strict=False)] = Field(
        default=("page", "ticket"),
        min_length=1,
        max_length=2,
        description="Severities of the alerts to receive.",
    )
    webhook: WebhookSpec | None = Field(default=None, description="See WebhookSpec.")
    slack: SlackSpec | None = Field(default=None, description="See SlackSpec.")
    email: EmailSpec | None = Field(default=None, description="See EmailSpec.")

    @model_validator(mode="after")
    def _is_single_target(self) -> Self:
        if sum(way is not None for way in (self.webhook, self.slack, self.email)) != 1:
            msg = "needs exactly one of 'webhook', 'slack' and 'email'"
            raise ValueError(msg)
        return self


class AlertsSpec(SpecModel):
    """Receivers of alerts, and notification intervals."""

    group_wait_s: float = Field(
        default=10.0,
        ge=0.0,
        le=3600.0,
        description="How long a message waits for more alerts of the same endpoint. Unit: seconds.",
    )
    repeat_s: float = Field(
        default=4 * 3600.0,
        ge=1.0,
        le=7 * _DAY_S,
        description="Interval at which an alert that still fires is sent again. Unit: seconds.",
    )
    receivers: Annotated[tuple[ReceiverSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=32, description="Receivers of alerts. See ReceiverSpec."
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [receiver.name for receiver in self.receivers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"several receivers have the name {', '.join(map(repr, twice))}"
            raise ValueError(msg)
        return self
