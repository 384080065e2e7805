"""Apache Kafka and Apache Pulsar for tests and developers: their jars, and servers of them.

`make brokers` starts one Kafka broker, `ARGS="--kafka 3 --secure --pulsar"` three, with listeners
for SCRAM and TLS, and a Pulsar; `ARGS=--build` only resolves the jars. Maven resolves them, once
for each version, into `$XDG_CACHE_HOME/headrace/brokers`.
"""

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

VERSIONS: Final = {"kafka": "4.1.0", "pulsar": "4.0.7"}
JAVA: Final = 17
"""Oldest Java that runs these versions."""
_POMS: Final = Path(__file__).resolve().parents[1] / "tests" / "brokers"
_REMEDY: Final = "`make brokers ARGS=--build` resolves its jars, with Maven"


class BuildError(Exception):
    """The jars cannot be resolved here."""


def jars(kind: str) -> Path:
    """Return the folder of the jars of this version; it exists only once all are there."""
    around = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(around) / "headrace" / "brokers" / f"{kind}-{VERSIONS[kind]}"


def why_not(kind: str) -> str:
    """Return why `kafka` or `pulsar` cannot run here; empty if it can."""
    if shutil.which("java") is None:
        return f"there is no `java`: install Java {JAVA} or newer"
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)  # noqa: S607  # the developer's own
    version = re.search(r'version "(\d+)', said.stderr)
    if version is None or int(version[1]) < JAVA:
        return f"`java -version` is older than {JAVA}"
    return "" if jars(kind).is_dir() else f"{kind} {VERSIONS[kind]} is not there: {_REMEDY}"


def build(kind: str) -> Path:
    """Resolve the jars that are not in the cache; return their folder.

    Raises:
        BuildError: Maven is missing, or does not get a jar.
    """
    target = jars(kind)
    if target.is_dir():
        return target
    if shutil.which("mvn") is None:
        raise BuildError("there is no `mvn`: install Maven 3.8 or newer")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():  # another process resolved them meanwhile
            return target
        since = time.monotonic()
        _say(f"resolving {kind} {VERSIONS[kind]} into the cache, once: one to three minutes")
        partial = target.with_name(f"{kind}-partial")
        done = subprocess.run(  # noqa: S603  # fixed arguments
            [  # the developer's own
                *("mvn", "--quiet", "--batch-mode", "--file", _POMS / f"{kind}.xml"),
                *("--global-settings", _POMS / "settings.xml", f"-Dversion={VERSIONS[kind]}"),
                "dependency:copy-dependencies",
                *("-DincludeScope=runtime", f"-DoutputDirectory={partial}"),
            ],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise BuildError(f"mvn: {done.stdout.strip()[-2000:]}")
        partial.rename(target)
        _say(f"{kind} took {time.monotonic() - since:.0f} s")
    return target


def _say(text: str) -> None:
    print(f"brokers: {text}", flush=True)


def main() -> None:
    """Resolve the jars; run servers until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make brokers ARGS=", description=__doc__)
    parser.add_argument("--build", action="store_true", help="only resolve the jars of both")
    parser.add_argument("--kafka", type=int, help="brokers of Kafka (default: 1 without --pulsar)")
    parser.add_argument("--pulsar", action="store_true", help="a standalone Pulsar")
    parser.add_argument("--secure", action="store_true", help="listeners of Kafka with SCRAM, TLS")
    options = parser.parse_args()
    brokers = (0 if options.pulsar else 1) if options.kafka is None else options.kafka
    try:
        if brokers or options.build:
            _say(f"the jars are in {build('kafka')}")
        if options.pulsar or options.build:
            _say(f"the jars are in {build('pulsar')}")
    except BuildError as error:
        sys.exit(f"brokers: {error}")
    if options.build:
        return
    from tests.brokers.kafka import running_kafka  # noqa: PLC0415  # the tests' servers
    from tests.brokers.pulsar import running_pulsar  # noqa: PLC0415

    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hr-brokers-")))
        if brokers:
            cluster = stack.enter_context(
                running_kafka(folder / "kafka", brokers=brokers, is_secure=options.secure)
            )
            for name, url in cluster.urls().items():
                _say(f"{name}: {url}")
        if options.pulsar:
            server = stack.enter_context(running_pulsar(folder / "pulsar"))
            _say(f"Pulsar: {server.url}, its admin API: {server.admin}")
        _say(f"logs and data are in {folder}; Ctrl-C ends all of it")
        ending.wait()


if __name__ == "__main__":
    main()
