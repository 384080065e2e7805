"""How a replica's container ends: under load, while it loads, and with a model that hangs."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
import pytest

from tests.images.containers import Docker, running
from tests.images.test_replica import ports

CALLERS = 16
WITHIN_S = 60.0


def body(value: float) -> dict[str, object]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}
    return {"inputs": [tensor]}


@dataclass(kw_only=True)
class Load:
    """Callers that ask as fast as they are answered, each on new connections, until refused."""

    url: str
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [
            threading.Thread(target=self._call, args=(float(i),)) for i in range(CALLERS)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_answers(self, count: int) -> None:
        until = time.monotonic() + WITHIN_S
        while self.outcomes["200"] < count:
            assert time.monotonic() < until, self.outcomes
            time.sleep(0.02)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=60)

    def _call(self, value: float) -> None:
        while True:
            try:
                answer = httpx.post(self.url, json=body(value), timeout=30)
            except httpx.ConnectError:
                self.outcomes["refused"] += 1
                return
            except httpx.HTTPError as error:
                self.outcomes[f"lost: {error!r}"] += 1
                return
            self.outcomes[str(answer.status_code)] += 1
            if answer.status_code == httpx.codes.OK:
                data = answer.json()["outputs"][0]["data"]
                if data != [2 * value, 2 * value]:
                    self.wrong.append(data)


def infer_url(told: Mapping[str, str]) -> str:
    return f"http://127.0.0.1:{told['HEADRACE_HTTP_PORT']}/v2/models/m/infer"


def command(model: str) -> tuple[str, ...]:
    return ("serve", f"/models/{model}", "--name", "m", "--allow-code")


def test_told_to_end_under_load_it_loses_nothing(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    told = ports()
    load = Load(url=infer_url(told))
    with running(
        docker, images["replica"], *command("double"), environ=told, mounts=[mount]
    ) as container:
        container.wait_for_health("healthy")
        load.start()
        load.wait_for_answers(3 * CALLERS)

        container.stop()
        load.join()

        assert load.outcomes.keys() == {"200", "refused"}, load.outcomes
        assert load.wrong == []
        assert container.state["ExitCode"] == 0, container.logs()


def test_a_model_that_hangs_makes_it_unhealthy_and_it_ends_all_the_same(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    told = ports()
    with running(
        docker, images["replica"], *command("hanging"), environ=told, mounts=[mount]
    ) as container:
        container.wait_for_health("healthy")
        assert httpx.post(infer_url(told), json=body(1.0), timeout=10).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(infer_url(told), json=body(-1.0), timeout=1)

        container.wait_for_health("unhealthy")

        assert "503" in container.state["Health"]["Log"][-1]["Output"]
        assert container.stop() < 10, container.logs()
        assert container.state["ExitCode"] == 0, container.logs()


def test_a_model_that_takes_for_ever_to_load_does_not_keep_it_from_ending(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    told = ports()
    with running(
        docker, images["replica"], *command("late"), environ=told, mounts=[mount]
    ) as container:
        container.wait_for_log("loading begins")

        assert container.stop() < 10, container.logs()
        assert container.state["ExitCode"] == 0, container.logs()
        assert "stopped while the model was being loaded" in container.logs()
