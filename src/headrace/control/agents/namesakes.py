"""Do two gateways report under one name? Then they are told apart, and people are told. Pure.

As one they would be in force and behind by turns, so that a replica could end that the other one
still sends requests to, and each would seem to have started anew whenever the other had reported.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.control.agents.messages import Report

_MOST_NAMES: Final = 1024
_MOST_FORMER: Final = 16


@dataclass(slots=True)
class _Name:
    """`newest`: the agent that came last under this name; `former`: those before it."""

    newest: str
    former: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_FORMER))


@dataclass(slots=True)
class Namesakes:
    """Which agents, by the id that each makes up at its start, report under which name."""

    _names: dict[str, _Name] = field(default_factory=dict)

    def apart(self, report: Report) -> Report:
        """`report`, under a name of its own if a newer agent has come under the same.

        One that was started anew does not report any more, so that the next one has its name.
        """
        if not report.instance:
            return report  # an older agent
        known = self._names.pop(report.name, None) or _Name(report.instance)
        self._names[report.name] = known
        while len(self._names) > _MOST_NAMES:
            del self._names[next(iter(self._names))]
        if report.instance == known.newest:
            return report
        if report.instance not in known.former:
            known.former.append(known.newest)
            known.newest = report.instance
            return report
        return msgspec.structs.replace(
            report,
            name=f"{report.name}#{report.instance[:8]}",
            problem=f"another gateway is called '{report.name}' too: give each its own --name",
        )
