"""How are keys and headers, which are bytes, kept where a broker has text only?"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from headrace.streaming.records import Header

_SAFE: Final = " !#$'()*+,-./:;<>?@[]^_`{|}~"


def quoted(key: bytes) -> str:
    """In quotes, with %XX for what is no plain character."""
    return f'"{quote(key, safe=_SAFE)}"'


def unquoted(text: str) -> bytes:
    """The contrary; what stands in no quotes is read as well."""
    inner = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    return unquote_to_bytes(inner)


def packed(headers: Sequence[Header]) -> str:
    """As in the query of a URL."""
    return "&".join(
        f"{quote(name.encode('utf-8', 'surrogateescape'), safe='')}={quote(value, safe='')}"
        for name, value in headers
    )


def unpacked(text: str) -> tuple[Header, ...]:
    """The contrary."""
    parts = (part.partition("=") for part in text.split("&"))
    return tuple(
        (unquote_to_bytes(name).decode("utf-8", "surrogateescape"), unquote_to_bytes(value))
        for name, _, value in parts
    )
