"""References to environment variables, `${NAME}`, in texts, so that settings hold no secrets.

After a reference was replaced, errors and log lines of this process hide the value.
"""

import os
from collections.abc import Mapping
from urllib.parse import quote

from headrace.core.errors import FailedPreconditionError
from headrace.core.redact import VARIABLE, remember_resolved


def filled_in(
    text: str, *, description: str = "", environment: Mapping[str, str] | None = None
) -> str:
    """Return `text` with each `${NAME}` replaced by its value.

    Args:
        what: Name of the text in the error; empty for none.
        environment: Variables; None for this process's.

    Raises:
        FailedPreconditionError: A variable is not set; the message names it.
    """
    variables = os.environ if environment is None else environment
    return VARIABLE.sub(lambda match: _value(match[1], variables, description), text)


def url_filled_in(
    url: str, *, description: str = "", environment: Mapping[str, str] | None = None
) -> str:
    """Return a URL with variables replaced: the whole URL, or parts with any characters.

    Raises:
        FailedPreconditionError: A variable is not set; the message names it.
    """
    if VARIABLE.fullmatch(url):
        return filled_in(url, description=description, environment=environment)
    variables = os.environ if environment is None else environment
    return VARIABLE.sub(lambda match: quote(_value(match[1], variables, description), safe=""), url)


def _value(name: str, environment: Mapping[str, str], description: str) -> str:
    if name not in environment:
        named = f": {description} refers to it, but it is not set" if description else ""
        raise FailedPreconditionError(f"the environment has no variable {name}{named}")
    remember_resolved(environment[name], f"${{{name}}}")
    return environment[name]
