"""Redaction of secrets in texts and documents that leave a process.

Two kinds of secrets are hidden: literal ones, recognised by their context (a URL's password, a
query option or a field with a secret's name, a token of Headrace), and the values by which
references (`${NAME}`, `file:PATH`) were replaced in this process. `HeadraceError` and the log's
formatters redact every text, so that a driver's error cannot reveal the resolved values of a URL.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Final, overload
from urllib.parse import quote, urlsplit

HIDDEN: Final = "***"
VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_NAME: Final = re.compile(
    r"(^|[_\-.])(pass|passwd|(ssl)?password|passphrase|secret|token|(api|private|access|secret|account)"
    r"[_-]?key|key\.pem|authorization|credentials?)s?$",
    re.IGNORECASE,
)
_SIGNATURE: Final = re.compile(r"(^|-)(sig|signature)$", re.IGNORECASE)
"""The option of a pre-signed URL that grants access."""
# Up to the last '@' of the authority. A ':' without a port also begins a password, which may have
# an unescaped '/', '?' or '#'.
_USERINFO: Final = re.compile(
    r"(?<=://)(?!\[[0-9a-fA-F:.]+\])([^\s/?#:@]*):([^\s/?#\"]*|(?!\d{1,5}[,/?#])[^\s@\"]*)@"
)
_OPTION: Final = re.compile(r"(?<=[?&;])([\w.%-]{1,100})=([^\s&#;'\"]+)")
_OUR_SECRET: Final = re.compile(r"\b(hr[a-z]?_[a-km-z2-9]{12})_[A-Za-z0-9_-]{43}")
_REFERENCE: Final = re.compile(r"^(\$\{\w+\}|file:.*)$")

_SHORTEST: Final = 4
"""Shorter values are not hidden: they cannot be distinguished from ordinary text."""
_WORD: Final = 8
"""Shorter values are hidden as whole words only. A message may truncate a longer one after this
many characters.
"""
_MAX_REMEMBERED: Final = 1000
_LOWER: Final = str.maketrans(ascii_uppercase, ascii_lowercase)
"""Host names are shown in lower case; the lower case of other letters may differ in length."""
_CUT: Final = ("", "…", "'", '"')
RESOLVED: Final[dict[str, str]] = {}
"""Reference of each resolved value, in lower case."""


@overload
def redact(document: Mapping[str, Any]) -> dict[str, Any]: ...


@overload
def redact(document: object) -> Any: ...  # noqa: ANN401  # JSON


def redact(document: object) -> Any:
    """Return `document` as JSON data without passwords, tokens, keys and resolved values.

    Text in a field with a secret's name is hidden, unless it is only a reference to the secret.
    """
    if isinstance(document, Mapping):
        return {str(key): _redacted_value(str(key), value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [redact(item) for item in document]
    return redact_text(document) if isinstance(document, str) else document


def is_secret_name(name: str) -> bool:
    """Whether a field or option of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def _redacted_value(key: str, value: object) -> object:
    is_secret = isinstance(value, str) and is_secret_name(key)
    if is_secret and value and _REFERENCE.match(str(value)) is None:
        return HIDDEN
    return redact(value)


def redact_text(text: str) -> str:
    """Return `text` without literal secrets in URLs, Headrace tokens and resolved values."""
    text = _unresolved(text) if RESOLVED else text
    if "://" in text:
        text = _USERINFO.sub(_without_password, text)
        text = _OPTION.sub(_without_option, text)
    if "hr" in text:
        text = _OUR_SECRET.sub(rf"\1_{HIDDEN}", text)
    return text


def literal_secret(url: str) -> str | None:
    """Return a description of a URL's plain-text secret, for a message; None without one."""
    passwords = [match[2] for match in _USERINFO.finditer(url)]
    with suppress(ValueError):  # not a URL: the code that opens it reports that
        passwords.append(urlsplit(url).password or "")
    if any(map(_is_literal, passwords)):
        return "a password"
    for match in _OPTION.finditer(url) if "://" in url else ():
        if _is_secret_option(match[1]) and _is_literal(match[2]):
            return f"the secret '{match[1]}'"
    return None


def literal_secrets(document: object, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield texts of a document that have a literal secret: location, text, and kind of secret."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from literal_secrets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(document, list | tuple):
        for i, value in enumerate(document):
            yield from literal_secrets(value, f"{path}[{i}]")
    elif isinstance(document, str) and (description := literal_secret(document)) is not None:
        yield path, document, description


def remember_resolved(value: str, reference: str) -> None:
    """Hide `value` from now on: each redacted text shows `reference` instead.

    Also hides the password of a URL value, and the forms in which drivers show values.
    """
    values = {value}
    if "://" in value:
        values |= {match[2] for match in _USERINFO.finditer(value)}
        values |= {m[2] for m in _OPTION.finditer(value) if _is_secret_option(m[1])}
    for part in values:
        shown = (part, quote(part), quote(part, safe=""), repr(part)[1:-1])
        in_json = [json.dumps(form)[1:-1] for form in shown]
        in_json += [json.dumps(form, ensure_ascii=False)[1:-1] for form in shown]
        for form in (*shown, *in_json):
            if len(form) >= _SHORTEST and (key := form.translate(_LOWER)) not in RESOLVED:
                if len(RESOLVED) >= _MAX_REMEMBERED:
                    RESOLVED.pop(next(iter(RESOLVED)))
                RESOLVED[key] = reference


def _without_password(match: re.Match[str]) -> str:
    return f"{match[1]}:{HIDDEN if _is_literal(match[2]) else match[2]}@"


def _without_option(match: re.Match[str]) -> str:
    is_shown = not (_is_secret_option(match[1]) and _is_literal(match[2]))
    return match[0] if is_shown else f"{match[1]}={HIDDEN}"


def _is_secret_option(name: str) -> bool:
    return is_secret_name(name) or _SIGNATURE.search(name) is not None


def _is_literal(value: str) -> bool:
    return bool(VARIABLE.sub("", value))


def _unresolved(text: str) -> str:
    lower = text.translate(_LOWER)
    hits = sorted(
        (start, -end, reference)
        for value, reference in RESOLVED.items()
        for start, end in _occurrences(lower, value)
    )
    parts, position = [], 0
    for start, negative_end, reference in hits:
        if start >= position:
            parts += [text[position:start], reference]
            position = -negative_end
    return "".join([*parts, text[position:]])


def _occurrences(text: str, value: str) -> Iterator[tuple[int, int]]:
    """Yield the positions of `value` in `text`, complete or truncated."""
    head = value[:_WORD]
    start = text.find(head)
    while start >= 0:
        end = start + len(head)
        while end < len(text) and text[start : end + 1] == value[: end + 1 - start]:
            end += 1
        is_whole = end - start == len(value)
        if len(value) < _WORD:
            is_hit = not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum())
        else:
            is_hit = is_whole or text[end : end + 1] in _CUT
        if is_hit:
            yield start, end
        start = text.find(head, end if is_hit else start + 1)
