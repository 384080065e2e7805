"""Which names of topics do all brokers take? Those that Kafka takes."""

import re
from typing import Final

from headrace.core import InvalidArgumentError

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SHOWN: Final = 60


def check_topic(topic: str) -> str:
    """`topic`, if it can name one.

    Raises:
        InvalidArgumentError: It cannot.
    """
    if _TOPIC.fullmatch(topic) is None or topic in {".", ".."}:
        message = (
            f"{topic[:_SHOWN]!r} cannot name a topic: use 1 to 249 letters, digits, '.', '_' or '-'"
        )
        raise InvalidArgumentError(message)
    return topic
