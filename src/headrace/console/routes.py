"""Which page stands where? One table, for requests and for the streams that keep pages new."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.routing import compile_path

from headrace.console.diagram import diagram
from headrace.console.endpoint import endpoint
from headrace.console.fleet import fleet
from headrace.console.jobs import job, jobs
from headrace.console.models import model, models
from headrace.console.records import activity, alerts
from headrace.console.rollout import confirm, rollout, rollouts
from headrace.console.streams import confirm as confirm_stream
from headrace.console.streams import stream, streams
from headrace.console.try_it import Gateway, try_it
from headrace.console.view import MakeView

LIVE: Final[Mapping[str, MakeView]] = {
    "/": fleet,
    "/endpoints/{name}": endpoint,
    "/rollouts": rollouts,
    "/rollouts/{rollout}": rollout,
    "/streams": streams,
    "/streams/{stream}": stream,
    "/jobs": jobs,
    "/jobs/{job}": job,
    "/models": models,
    "/models/{name}": model,
    "/alerts": alerts,
    "/activity": activity,
    "/diagram": diagram,
}
"""Pages that may be kept new by a stream."""
CONFIRM: Final = "/rollouts/{rollout}/{verb}"
CONFIRM_STREAM: Final = "/streams/{stream}/{verb}"
TRY: Final = "/endpoints/{name}/try"

_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A page and the names in its path."""

    make: MakeView
    names: Mapping[str, str]
    is_live: bool


class PageBook:
    """Finds pages by path."""

    def __init__(self, gateway: Gateway) -> None:
        still: dict[str, MakeView] = {
            CONFIRM: confirm,
            CONFIRM_STREAM: confirm_stream,
            TRY: partial(try_it, gateway=gateway),
        }
        self._pages = [
            (compile_path(path)[0], make, path in LIVE) for path, make in {**LIVE, **still}.items()
        ]

    def find(self, path: str) -> Found | None:
        """The page of a path; None if there is none."""
        for pattern, make, is_live in self._pages:
            match = pattern.fullmatch(path)
            if match is not None and all(_SAFE.issuperset(one) for one in match.groups()):
                return Found(make=make, names=match.groupdict(), is_live=is_live)
        return None
