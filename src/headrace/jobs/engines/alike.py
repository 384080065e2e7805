"""Has a worker the Headrace that the driver has, and what decides about bytes and digits?

What is sent to a worker for this must not need Headrace there: it is made of plain functions within
functions, which are sent as they are and not by name.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

PACKAGES: Final = ("headrace", "numpy", "onnxruntime", "polars", "pyarrow")
"""Of the same version everywhere: a file of Parquet names the library that wrote it."""


def versions() -> dict[str, str]:
    """What is installed here, of what has to be the same."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def differing(wanted: Mapping[str, str]) -> Callable[[], str]:
    """A function for a worker: what is missing or different there, in words; empty if nothing."""
    there = dict(wanted)

    def look() -> str:
        import socket  # noqa: PLC0415  # runs elsewhere, where only what it imports is
        from importlib import metadata  # noqa: PLC0415  # as above

        wrong = []
        for name, needed in there.items():
            try:
                found = metadata.version(name)
            except metadata.PackageNotFoundError:
                found = ""
            if found != needed:
                wrong.append(f"{name} {found or 'is missing'}, not {needed or 'none'}")
        if not wrong:
            return ""
        return (
            f"worker on {socket.gethostname()} has {'; '.join(wrong)}: install the driver's "
            "versions on all workers, as answers could differ"
        )

    return look


def shard_runner(wanted: Mapping[str, str]) -> Callable[[bytes, bytes, int], bytes]:
    """A function for a worker that outlives it: runs a shard, comes to an `Outcome`."""
    look = differing(wanted)

    def run(errand: bytes, shard: bytes, number: int) -> bytes:
        import json  # noqa: PLC0415  # as above
        import os  # noqa: PLC0415  # as above

        wrong = look()
        if wrong:
            told = {"shard": number, "code": "FAILED_PRECONDITION", "message": wrong}
            return json.dumps(told).encode()
        # One worker a core: Polars would begin a thread for each core in every one.
        os.environ.setdefault("POLARS_MAX_THREADS", "1")
        from headrace.jobs.engines.worker import run_kept  # noqa: PLC0415  # as above

        return run_kept(errand, shard)

    return run


def worker_class(wanted: Mapping[str, str]) -> type[Any]:
    """A class for a process of a cluster that holds a `Worker`."""
    look = differing(wanted)

    class There:
        def __init__(self, errand: bytes) -> None:
            self.errand = errand
            self.worker: Any = None

        def ready(self) -> str:
            """Load; what is wrong, as JSON of an `Outcome`, or nothing."""
            import json  # noqa: PLC0415  # as above
            import os  # noqa: PLC0415  # as above

            wrong = look()
            if wrong:
                return json.dumps({"shard": -1, "code": "FAILED_PRECONDITION", "message": wrong})
            os.environ.setdefault("POLARS_MAX_THREADS", "1")
            from headrace.core import HeadraceError  # noqa: PLC0415  # as above
            from headrace.jobs.engines.worker import Worker, not_begun  # noqa: PLC0415  # as above

            try:
                self.worker = Worker.open(self.errand)
            except HeadraceError as error:
                return not_begun(-1, error).decode()
            return ""

        def run(self, shard: bytes) -> bytes:
            done: bytes = self.worker.run(shard)
            return done

        def seen(self) -> bytes:
            seen: bytes = self.worker.seen()
            return seen

        def stop(self) -> None:
            if self.worker is not None:
                self.worker.stop()

    return There
