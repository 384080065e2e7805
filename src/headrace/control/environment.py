"""Which variables of the environment does a process inherit? None that only others were told of.

Settings name secrets as `${NAME}`. A variable that is named so reaches those processes only whose
own settings name it. The rest is everybody's: proxies, certificates and clouds' credentials have
names that nobody can foresee, and are needed where a model or a store asks for them.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.core.redact import VARIABLE


def named_in(*texts: str) -> set[str]:
    """The variables that texts name."""
    return {name for text in texts for name in VARIABLE.findall(text)}


@dataclass(slots=True)
class Environment:
    """What the processes of a control plane inherit.

    `given`: all there is. `document`: the spec that is wanted now, whose names count from the
    first time that they are seen here: what was a secret once stays one.
    """

    given: Mapping[str, str] = field(default_factory=lambda: os.environ)
    document: Callable[[], Mapping[str, Any]] = dict
    _named: set[str] = field(default_factory=set)

    def of(self, *told: str, parts: Iterable[str] = ()) -> dict[str, str]:
        """The environment of a new process.

        Args:
            told: Its settings, as text: what these name it has.
            parts: Of the spec, by name, such as `endpoints`: what all of them name it has as well.
        """
        document = self.document()
        self._named |= named_in(_text(document), *map(options_of, _brokers(document)))
        own = named_in(*told, *(_text(document.get(part)) for part in parts))
        withheld = self._named - own
        return {name: value for name, value in self.given.items() if name not in withheld}


def options_of(broker: str) -> str:
    """What a file holds that a stream's broker names: it names secrets as well."""
    if not broker.startswith("kafka:"):
        return ""
    from headrace.streaming.brokers.kafka_url import (  # noqa: PLC0415  # few have one
        options_text,
    )

    return options_text(broker)


def _brokers(document: Mapping[str, Any]) -> list[str]:
    sources = [stream.get("source") or {} for stream in document.get("streams") or ()]
    return [broker for source in sources if isinstance(broker := source.get("broker"), str)]


def _text(document: object) -> str:
    """As JSON; nothing in it that is escaped can be a part of a name."""
    return msgspec.json.encode(document, enc_hook=str).decode()
