"""Shares as people write them: `1%`, `0.01`."""

import typer


def parse_share(text: str, flag: str) -> float:
    """A ratio out of `1%` or `0.01`, which `flag` gave.

    Raises:
        BadParameter: It is none between 0 and 1.
    """
    word = text.strip()
    try:
        ratio = float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        msg = f"'{text}' is no share; write 1% or 0.01"
        raise typer.BadParameter(msg, param_hint=flag)
    return ratio
