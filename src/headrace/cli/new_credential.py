"""How is a key or a token handed over that is shown this once, and named afterwards?"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote


def hand_over(
    made: Mapping[str, Any], field: str, told: str, *, out: Path | None, json: bool, more: str = ""
) -> None:
    """Write what was made into a file, or print it.

    Args:
        made: As the API tells it.
        field: Where in it the secret stands; also what it is called.
        told: Of whom it is, as in `key ID of shop`.
        out: For its owner only; None prints it.
        more: Said of it where it is printed.
    """
    from headrace.cli.output import say, write, write_json  # noqa: PLC0415  # only here
    from headrace.core.files import write_atomic  # noqa: PLC0415  # only here

    secret, name = made[field], f"{field} {made['id']} of {told}"
    if out is not None:
        write_atomic(out, f"{secret}\n".encode())
        say(f"{name} is in {out}")
        made = {**made, field: ""}
    if json:
        write_json(made)
    elif out is None:
        say(f"{name}{more}; it is not shown again")
        write(secret)


def id_of(text: str, prefixes: Collection[str]) -> str:
    """The id or name in what was given, fit for a path; a whole credential has its id too."""
    parts = text.split("_")
    is_whole = len(parts) > 2 and parts[0] in prefixes  # noqa: PLR2004  # prefix, id, secret
    return quote(parts[1] if is_whole else text, safe="")
