"""Elements of BYTES as the texts that they stand for."""

from typing import Any, Final

from headrace.core import Array, InvalidArgumentError

MAX_TEXT_BYTES: Final = 1 << 20


def texts_of(elements: Array) -> list[str]:
    """The text of each element, in row-major order.

    Raises:
        InvalidArgumentError: One is too long, or not UTF-8; the message names its row.
    """
    return [_text(raw, row) for row, raw in enumerate(elements.reshape(-1).tolist())]


def _text(raw: Any, row: int) -> str:  # noqa: ANN401  # an element of BYTES
    if len(raw) > MAX_TEXT_BYTES:
        msg = f"text {row} has {len(raw)} bytes, more than {MAX_TEXT_BYTES}"
        raise InvalidArgumentError(msg)
    try:
        return raw if isinstance(raw, str) else bytes(raw).decode()
    except UnicodeDecodeError as error:
        msg = f"text {row} is not UTF-8 (byte {error.start})"
        raise InvalidArgumentError(msg) from None
