"""Debian's real Prometheus of the tests' own: scrapes what it is told to, answers queries.

`running_prometheus` starts one on a free port and ends it by its pid. Where there is none and none
can be fetched, `NoToolError` says why; tests skip then.
"""

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.e2e.debian import find_tool
from tests.ports import free_port

READY_WITHIN_S: Final = 30.0
_LOOK_AGAIN_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The two programs."""

    prometheus: Path
    promtool: Path

    def check_metrics(self, exposition: str) -> str:
        """What `promtool check metrics` complains about; empty if nothing."""
        return self._run("check", "metrics", text=exposition)

    def check_rules(self, path: Path) -> str:
        """What `promtool check rules` complains about; empty if nothing."""
        return self._run("check", "rules", "--lint-fatal", str(path))

    def test_rules(self, path: Path) -> str:
        """What `promtool test rules` complains about; empty if all tests of the file pass."""
        return self._run("test", "rules", str(path))

    def check_config(self, path: Path) -> str:
        """What `promtool check config` complains about; empty if nothing."""
        return self._run("check", "config", str(path))

    def _run(self, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [self.promtool, *arguments], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and arguments[:2] != ("check", "metrics"):
            return ""
        return done.stdout + done.stderr


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of an answer: the newest value, and all of them where a range was asked for."""

    labels: Mapping[str, str]
    value: float
    values: tuple[tuple[float, float], ...] = ()


@dataclass(kw_only=True)
class PrometheusServer:
    """A running Prometheus."""

    tools: Tools
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def query(self, expression: str) -> list[Series]:
        """What an instant query finds; a scalar is one series without labels."""
        data = self.get("/api/v1/query", query=expression)
        if data["resultType"] == "scalar":
            return [Series(labels={}, value=float(data["result"][1]))]
        return [
            Series(labels=found["metric"], value=float(found["value"][1]))
            for found in data["result"]
        ]

    def query_range(
        self, expression: str, *, since: float, until: float, step_s: float
    ) -> list[Series]:
        """What a range query finds."""
        data = self.get(
            "/api/v1/query_range", query=expression, start=since, end=until, step=step_s
        )
        found = []
        for item in data["result"]:
            values = tuple((float(at), float(value)) for at, value in item["values"])
            found.append(Series(labels=item["metric"], value=values[-1][1], values=values))
        return found

    def wait_for(self, expression: str, *, timeout_s: float = 20.0) -> list[Series]:
        """What an instant query finds, as soon as it finds anything."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression} finds nothing; {self.targets()}"
            time.sleep(_LOOK_AGAIN_S)
        return found

    def wait_scraped(self, *, times: int = 1, timeout_s: float = 20.0) -> None:
        """Return when each target was scraped `times` more often, with success.

        A scrape that a busy machine was too slow for is none; the next one may do.
        """
        began = time.time()  # noqa: TID251  # Prometheus stamps its samples by the wall clock
        deadline = time.monotonic() + timeout_s
        while True:
            since = time.time() - began  # noqa: TID251  # as above
            counts = self.query(f"sum_over_time(up[{max(int(since * 1000), 1)}ms])")
            if counts and all(series.value >= times for series in counts):
                return
            assert time.monotonic() < deadline, self.targets()
            time.sleep(_LOOK_AGAIN_S)

    def targets(self) -> list[tuple[str, str, str]]:
        """Address, health and last error of each target."""
        data = self.get("/api/v1/targets", state="active")
        return [(t["scrapeUrl"], t["health"], t["lastError"]) for t in data["activeTargets"]]

    def alerts(self) -> list[Any]:
        """Alerts that are pending or firing, as the API has them."""
        return list(self.get("/api/v1/alerts")["alerts"])

    def get(self, path: str, **parameters: object) -> Any:
        """The `data` of an answer of Prometheus' API."""
        url = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # loopback
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{url}: {error.read().decode()}") from None

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self) -> None:
        command: list[str | Path] = [
            self.tools.prometheus,
            f"--config.file={self.directory / 'prometheus.json'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._is_ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"Prometheus does not come up: {self.log()}"
            time.sleep(_LOOK_AGAIN_S)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            finally:
                self.process.kill()
                self.process.wait()
                self.process = None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):  # noqa: S310  # loopback
                return True
        except OSError:
            return False


def find_prometheus() -> Tools:
    """The installed programs, else those that were fetched into the user's cache once.

    Raises:
        NoToolError: There are none.
    """
    return Tools(prometheus=find_tool("prometheus"), promtool=find_tool("promtool"))


@contextmanager
def running_prometheus(
    *targets: str,
    rules: Sequence[Path] = (),
    interval_s: float = 1.0,
    job: str = "headrace",
    config: Mapping[str, object] | None = None,
) -> Iterator[PrometheusServer]:
    """A Prometheus that scrapes `targets` until the block ends.

    Args:
        targets: URLs of metrics, such as `http://127.0.0.1:8002/metrics`.
        rules: Files of rules that it evaluates, as often as it scrapes.
        config: More of its configuration; goes over what is made of the other arguments.

    Raises:
        NoToolError: There can be none.
    """
    tools = find_prometheus()
    interval = f"{round(interval_s * 1000)}ms"
    with tempfile.TemporaryDirectory(prefix="hr-prom-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        document = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [_scrape(job, number, url) for number, url in enumerate(targets)],
            **(config or {}),
        }
        # JSON is YAML too.
        (directory / "prometheus.json").write_text(json.dumps(document))
        server = PrometheusServer(
            tools=tools,
            directory=directory,
            port=free_port(),
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _scrape(job: str, number: int, url: str) -> dict[str, object]:
    parts = urllib.parse.urlsplit(url)
    return {
        "job_name": f"{job}-{number}" if number else job,
        "scheme": parts.scheme,
        "metrics_path": parts.path or "/metrics",
        "static_configs": [{"targets": [parts.netloc]}],
    }
