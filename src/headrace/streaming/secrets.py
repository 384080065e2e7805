"""What does a broker's URL mean that names secrets? `${NAME}` stands for a variable.

The URL is stored and told as it was written; only who connects knows what it means.
"""

import os
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from headrace.core import FailedPreconditionError

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def resolve_broker(url: str, environment: Mapping[str, str] | None = None) -> str:
    """`url` with its variables: one that is all of it as it is, a part of it may have any letters.

    Args:
        environment: None for this process's.

    Raises:
        FailedPreconditionError: A variable is not set; the message names it.
    """
    given = os.environ if environment is None else environment

    def value(match: re.Match[str]) -> str:
        found = given.get(match[1])
        if found is None:
            message = f"the broker's URL names ${{{match[1]}}}, and the environment has none"
            raise FailedPreconditionError(message)
        return found

    whole = _VARIABLE.fullmatch(url)
    if whole is not None:
        return value(whole)
    return _VARIABLE.sub(lambda match: quote(value(match), safe=""), url)
