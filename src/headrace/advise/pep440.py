"""Which of two versions of a Python package is older? What PEP 440 says, as far as it is needed."""

import re
from typing import Final

_VERSION: Final = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|b|c|rc|alpha|beta|pre|preview)[-_.]?(?P<pre_n>\d*))?"
    r"(?:-(?P<post_short>\d+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_n>\d*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?"
)
_STAGES: Final = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_MOST_DIGITS: Final = 18

VersionKey = tuple[int, tuple[int, ...], tuple[int, int], int, tuple[int, int]]


def version_key(version: str) -> VersionKey | None:
    """What orders versions; None for a text that is no version."""
    text = version.strip().lower()
    found = _VERSION.fullmatch(text)
    if found is None or any(len(digits) > _MOST_DIGITS for digits in re.findall(r"\d+", text)):
        return None
    release = tuple(int(part) for part in found["release"].split("."))
    while len(release) > 1 and release[-1] == 0:
        release = release[:-1]
    is_dev, is_post = found["dev"] is not None, bool(found["post"] or found["post_short"])
    if found["pre"]:
        stage = (_STAGES[found["pre"]], int(found["pre_n"] or 0))
    else:
        # 1.0.dev1 comes before 1.0a1, and that before 1.0.
        stage = (-1, 0) if is_dev and not is_post else (3, 0)
    post = int(found["post_short"] or found["post_n"] or 0) if is_post else -1
    dev = (0, int(found["dev_n"] or 0)) if is_dev else (1, 0)
    return int(found["epoch"] or 0), release, stage, post, dev
