"""What may be told of a document? Everything but its secrets."""

import re
from collections.abc import Mapping
from typing import Final

HIDDEN: Final = "***"
_SECRET_KEY: Final = re.compile(
    r"(^|[_\-.])(pass|passwd|password|passphrase|secret|token|api[_-]?key|private[_-]?key|"
    r"authorization|credentials?)s?$",
    re.IGNORECASE,
)
_URL_PASSWORD: Final = re.compile(r"(?<=://)([^\s/@:]*):([^\s/@]+)@")
_OUR_SECRET: Final = re.compile(r"\b(hr[a-z]?_[a-km-z2-9]{12})_[A-Za-z0-9_-]{43}")
_REFERENCE: Final = re.compile(r"^(\$\{\w+\}|file:.*)$")


def redact(document: object) -> object:
    """`document` as JSON can say it, without passwords, tokens and keys.

    Hidden is text under a name that means a secret, unless it only says where the secret is, and
    passwords in URLs and tokens of our own anywhere.
    """
    if isinstance(document, Mapping):
        return {str(key): _redacted_value(str(key), value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [redact(item) for item in document]
    return redact_text(document) if isinstance(document, str) else document


def _redacted_value(key: str, value: object) -> object:
    is_secret = isinstance(value, str) and _SECRET_KEY.search(key) is not None
    if is_secret and value and _REFERENCE.match(str(value)) is None:
        return HIDDEN
    return redact(value)


def redact_text(text: str) -> str:
    """`text` without passwords in URLs and tokens of our own."""
    text = _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    return _OUR_SECRET.sub(rf"\1_{HIDDEN}", text)
