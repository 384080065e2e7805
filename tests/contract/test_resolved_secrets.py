"""What a `${NAME}` of the spec resolved to is in no error and no log line, whoever raises it.

A law over each field of the spec's schema that takes `${NAME}`: what opens its URLs is given ones
that real drivers and parsers refuse in their own words.
"""

import asyncio
import contextlib
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.base.settings import resolve_url
from headrace.control.local.online_stores import OnlineStores
from headrace.control.notify.delivery import send
from headrace.control.notify.messages import AlertMessage
from headrace.core.redact import RESOLVED, redact_text
from headrace.core.spec.alerts import ReceiverSpec
from headrace.core.spec.parse import json_schema
from headrace.core.variables import url_filled_in
from headrace.features import open_online_store
from headrace.jobs.sources.open import open_source
from headrace.observe.logs import JsonFormatter, TextFormatter
from headrace.streaming.brokers import open_broker
from headrace.streaming.formats.options import read_options
from headrace.streaming.formats.registry import SchemaRegistry

NOBODY = "127.0.0.1:1"
Opener = Callable[[str, Path], object]


def store(url: str, home: Path) -> object:
    whole = resolve_url(url)
    OnlineStores(home).prepare(whole, for_others=True)
    opened = open_online_store(whole, timeout_s=0.2)
    return opened.read([b"k"], ["v"], timeout_s=0.2)


def broker(url: str, home: Path) -> object:
    with contextlib.closing(open_broker(url_filled_in(url), home=home)) as opened:
        return opened.ends("in")


def registry(url: str, _: Path) -> object:
    options = read_options("avro", {"registry": url, "timeout_s": 0.2})
    return SchemaRegistry(options, pause=lambda _: None).by_id(1)


def source(url: str, _: Path) -> object:
    return open_source(url, query="SELECT 1" if "://" in url else "")[1].schema()


def webhook(url: str, _: Path) -> object:
    receiver = ReceiverSpec.model_validate({"name": "r", "webhook": {"url": url}})
    message = AlertMessage(receiver=receiver, endpoint="m", firing=(), resolved=())
    return asyncio.run(send(message, environment=os.environ, admin_url="", now=0.0))


FIELDS: dict[str, tuple[Opener, tuple[str, ...]]] = {
    "OnlineStoreSpec.url": (
        store,
        (
            "${V}",
            f"redis://:${{V}}@{NOBODY}/0",
            f"redis://{NOBODY}/${{V}}",
            f"redis://{NOBODY}/0?${{V}}=1",
            "unix:///${V}",
            f"hopsworks://{NOBODY}/${{V}}?${{V}}=x",
            "sqlite:////nonexist/${V}/x.db",
            "sqlite:////proc/${V}",
            "feast:////nonexist/${V}",
            "${V}://host",
        ),
    ),
    "StreamSourceSpec.broker": (
        broker,
        (
            "${V}",
            f"redis://:${{V}}@{NOBODY}/0",
            f"redis://{NOBODY}/${{V}}",
            f"nats://u:${{V}}@{NOBODY}",
            "kafka://${V}:x",
            f"kafka://{NOBODY}/${{V}}",
            f"kafka://{NOBODY}?security.protocol=${{V}}",
            f"kafka://{NOBODY}?membership=${{V}}",
            f"kafka://{NOBODY}?properties_file=/nonexist/${{V}}",
            "log:////proc/${V}",
            "${V}://host",
        ),
    ),
    "StreamFormatSpec.options": (
        registry,
        (f"http://{NOBODY}/${{V}}", "${V}", "http://${V}:x/", "${V}://host"),
    ),
    "JobSpec.input": (
        source,
        (
            "/nonexist/${V}/x.csv",
            "${V}",
            f"postgresql://u:${{V}}@{NOBODY}/x",
            "sqlite:////nonexist/${V}.db",
            "sqlite:////proc/${V}",
        ),
    ),
    "WebhookSpec.url": (webhook, (f"http://{NOBODY}/${{V}}", "${V}", "http://${V}:x/")),
    "SlackSpec.url": (webhook, ("https://[${V}/",)),
}
"""Fields that take `${NAME}`, what opens their URLs, and URLs that cannot be opened."""
CASES = [(field, url) for field, (_, urls) in FIELDS.items() for url in urls]


def test_each_field_of_the_schema_that_takes_a_variable_is_opened_here() -> None:
    found = {
        f"{name}.{field}"
        for name, model in json_schema()["$defs"].items()
        for field, told in model.get("properties", {}).items()
        if "${NAME}" in told.get("description", "")
    }

    assert found == FIELDS.keys() - {"StreamFormatSpec.options"}  # they are the format's own


class Lines(logging.Handler):
    """All log lines, as both formatters write them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += [one.format(record) for one in (TextFormatter(), JsonFormatter())]


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    handler, root = Lines(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)


def shown_by(opener: Opener, url: str, home: Path) -> str:
    """All that a process shows of a URL that cannot be opened."""
    with logged() as lines:
        try:
            opener(url, home)
        except Exception as error:
            lines.append(str(error))
            logging.getLogger("headrace").exception("cannot open it")
            lines.append(redact_text("".join(traceback.format_exception(error))))
        else:
            pytest.fail(f"{url} was opened")
    return "\n".join(lines)


secrets = st.text(
    st.characters(codec="ascii", min_codepoint=33, exclude_characters="${}\\'\"/"),
    min_size=12,
    max_size=80,
).map("zQ7x{}".format)  # begins as no other text does


@pytest.mark.parametrize(("field", "url"), CASES)
@settings(max_examples=8)
@given(secret=secrets)
def test_a_resolved_value_is_not_shown(field: str, url: str, secret: str) -> None:
    RESOLVED.clear()
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setenv("V", secret)
        shown = shown_by(FIELDS[field][0], url, Path(folder))

    for form in (secret, secret[:8], quote(secret, safe="")):
        assert form.lower() not in shown.lower(), url
