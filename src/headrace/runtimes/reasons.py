"""Messages of model libraries as one line that people can read and act on.

Libraries put where in their source an error arose before what went wrong, and native stack traces
behind it. Both are left out, and of what is too long the middle: the end mostly says what to do.
"""

import re
from typing import Final

_MAX_REASON: Final = 400
_KEPT_START: Final = 150
_MAX_READ: Final = 16_384
_CUT: Final = " ... "
_STATUS: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_TRACE: Final = re.compile(r"\s*\n\s*(Stack trace:|Exception raised from ).*", re.DOTALL)
_SOURCE: Final = re.compile(
    r"(?<![\w./+-])(?:\[\d\d:\d\d:\d\d\] )?(?:[\w.+-]*/)*[\w+-]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+:? ?"
)
_NESTED: Final = r"(?:[^()]|\((?:[^()]|\([^()]*\))*\))*"
_SIGNATURE: Final = re.compile(
    rf"(?=[^()]*::)(?:[\w:<>~&*,\[\] ]|\(anonymous namespace\)|operator\(\))+?\({_NESTED}\)"
    r"(?:::<lambda\([^)]*\)>)?(?: const)?(?: ?\[with [^\]]*\])? "
)
_CONDITION: Final = re.compile(r"(?:Check failed: )?\S.{0,200}? was false\. (?=\S)")


def reason_of(error: BaseException) -> str:
    """What went wrong: a library's message without source paths, signatures and stack traces."""
    text = str(error)
    if len(text) > _MAX_READ:
        text = text[: _MAX_READ // 2] + _CUT + text[-_MAX_READ // 2 :]
    text = _STATUS.sub("", _TRACE.sub("", text))
    text = " ".join(text.split())
    for match in reversed(list(_SOURCE.finditer(text))):
        before, rest = text[: match.start()], text[match.end() :]
        signature = _SIGNATURE.match(rest)
        rest = rest[signature.end() :] if signature else rest
        condition = _CONDITION.match(rest)
        text = before + (rest[condition.end() :] if condition else rest)
    text = text.strip() or type(error).__name__
    if len(text) <= _MAX_REASON:
        return text
    return text[:_KEPT_START] + _CUT + text[_KEPT_START + len(_CUT) - _MAX_REASON :]
