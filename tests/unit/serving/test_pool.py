"""Which models a pool loads and unloads, who waits for that and how long: in virtual time."""

import asyncio
import json
import threading

import msgspec
import pytest

from headrace.core import RequestCancelledError, UnavailableError
from headrace.protocol.grpc_wire import frame, unframe
from headrace.protocol.protos import message_class
from headrace.scoring.loading import LoadedModel
from headrace.serving.exchange import Exchange
from headrace.serving.telemetry.report import AnswersPage, Observe, SamplesPage, models_digest
from tests.unit.serving.parts import BAD, Caller, a_model, error_of, infer_body, read
from tests.unit.serving.pool_parts import BROKEN, Fetches, Hosting, Loads, Trier, entry

pytestmark = pytest.mark.anyio


async def settle(seconds: float = 1.0) -> None:
    await asyncio.sleep(seconds)


async def test_a_model_is_tried_and_loaded_when_its_first_request_comes() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        first = hosting.infer("a")
        second = hosting.infer("a")
        assert first.answer is None
        assert hosting.model("a").phase == "loading"
        assert hosting.model("a").waiting == 2
        await settle()
        third = hosting.infer("a")
        await settle()

    assert [read(one).status for one in (first, second, third)] == [200] * 3
    assert read(first).json["outputs"][0]["data"] == [2, 4]
    assert hosting.trier.tried == ["a"]
    assert hosting.loads.loaded == ["a"]
    assert hosting.model("a").phase == "loaded"
    assert hosting.model("b").phase == "unloaded"


async def test_the_longest_unused_leaves_and_comes_back_without_another_trial() -> None:
    hosting = Hosting(max_loaded=2)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"), entry("c"))
        for name in ("a", "b", "c", "a"):
            exchange = hosting.infer(name)
            await settle()
            assert read(exchange).status == 200
        phases = [hosting.model(name).phase for name in ("a", "b", "c")]

    assert phases == ["loaded", "unloaded", "loaded"]
    assert hosting.trier.tried == ["a", "b", "c"]
    assert hosting.loads.loaded == ["a", "b", "c", "a"]
    assert hosting.model("a").loads == 2
    assert hosting.model("a").unloads == 1
    assert len(hosting.loads.freed) == 2


async def test_memory_is_kept_within_its_bound() -> None:
    sizes = {"a": 40, "b": 50, "c": 60}
    hosting = Hosting(trier=Trier(sizes=sizes), memory_bytes=100)
    async with hosting.pool:
        hosting.declare(*map(entry, sizes))
        for name in "abcab":
            hosting.infer(name)
            await settle()
            assert hosting.pool.report().loaded_bytes <= 100

    assert hosting.loads.loaded == ["a", "b", "c", "a", "b"]
    assert {name for name in sizes if hosting.model(name).phase == "loaded"} == {"a", "b"}


async def test_a_model_larger_than_the_pool_is_refused_with_the_reason_in_the_report() -> None:
    hosting = Hosting(trier=Trier(sizes={"a": 200}), memory_bytes=100)
    async with hosting.pool:
        hosting.declare(entry("a"))
        exchange = hosting.infer("a")
        await settle()

    assert read(exchange).status == 503
    assert "needs 200 bytes" in hosting.model("a").reason


async def test_a_model_with_requests_in_flight_stays_until_they_are_answered() -> None:
    loads = Loads()
    hosting = Hosting(loads=loads, max_loaded=1)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        hosting.infer("a")
        await settle()
        busy = hosting.pool.models["a", "1"].state.served
        assert busy is not None
        ticket = Caller().request("POST", "/v2/models/a/infer", infer_body((1, 2)))
        hosting.application.handle(ticket)  # queued: the engine has not run yet
        other = hosting.infer("b")
        assert hosting.model("a").in_flight == 1
        await settle()

    assert read(ticket).status == read(other).status == 200
    assert loads.loaded == ["a", "b"]


async def test_a_model_of_which_a_row_is_checked_counts_as_busy_though_it_has_no_request() -> None:
    hosting = Hosting()
    held_row = threading.Event()
    async with hosting.pool:
        hosting.declare(entry("a"))
        hosting.infer("a")
        await settle()
        hosted = hosting.pool.models["a", "1"]
        assert hosted.state.served is not None
        assert not hosted.resident().is_busy
        assert hosted.state.served.engine.run_in_thread(lambda _: waited(held_row), lambda: None)
        is_busy = hosted.resident().is_busy
        held_row.set()

    assert is_busy
    assert hosted.in_flight == 0


def waited(event: threading.Event) -> None:
    event.wait(10)


async def test_where_all_are_busy_a_load_waits_and_then_gives_up() -> None:
    hosting = Hosting(max_loaded=1, load_timeout_s=3.0)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        hosting.infer("a")
        await settle()
        hosting.pool.models["a", "1"].state.waiting += 1  # somebody waits: it may not leave
        exchange = hosting.infer("b")
        await settle(2.0)
        assert exchange.answer is None
        await settle(2.0)
        hosting.pool.models["a", "1"].state.waiting -= 1
        await settle(10.0)
        again = hosting.infer("b")
        await settle()

    assert read(exchange).status == 503
    assert read(again).status == 200
    assert hosting.model("a").phase == "unloaded"


@pytest.mark.parametrize("where", ["trial", "load"])
async def test_a_model_that_cannot_be_loaded_costs_nobody_else_anything(where: str) -> None:
    trier, loads = Trier(), Loads()
    if where == "trial":
        trier.errors["bad"] = "killed by SIGSEGV"
    else:
        loads.errors["bad"] = BROKEN
    hosting = Hosting(trier=trier, loads=loads)
    async with hosting.pool:
        hosting.declare(entry("good"), entry("bad"))
        bad, good = hosting.infer("bad"), hosting.infer("good")
        await settle()
        ready = hosting.ask("GET", "/v2/models/bad/ready")

    assert read(good).status == 200
    assert read(bad).status == 503
    assert "Retry-After: 2" in read(bad).head
    assert "x-headrace-not-started: 1" in read(bad).head
    assert "SIGSEGV" not in error_of(bad)
    assert hosting.model("bad").phase == "failed"
    assert hosting.model("bad").reason in {"killed by SIGSEGV", "broken here"}
    assert read(ready).status == 400
    assert hosting.pool.report().loaded_bytes == 10


async def test_a_failed_model_is_tried_again_later_and_later() -> None:
    hosting = Hosting(trier=Trier(errors={"a": "no"}))
    async with hosting.pool:
        hosting.declare(entry("a"))
        for expected_s in (2, 4, 8, 16, 32, 60, 60):
            before = len(hosting.trier.tried)
            hosting.infer("a")
            await settle(0.5)
            assert len(hosting.trier.tried) == before + 1
            refused = hosting.infer("a")
            assert read(refused).status == 503
            await settle(expected_s - 0.55)
            assert read(hosting.infer("a")).status == 503
            assert len(hosting.trier.tried) == before + 1
            await settle(0.3)
        hosting.trier.errors.clear()
        await settle(60)
        exchange = hosting.infer("a")
        await settle()

    assert read(exchange).status == 200
    assert hosting.model("a").phase == "loaded"


async def test_a_model_that_has_failed_for_weeks_is_tried_again_still() -> None:
    hosting = Hosting(trier=Trier(errors={"a": "no"}))
    async with hosting.pool:
        hosting.declare(entry("a"))
        hosting.pool.models["a", "1"].failures = 2000
        refused = hosting.infer("a")
        await settle(0.5)
        assert (read(refused).status, hosting.model("a").phase) == (503, "failed")
        hosting.trier.errors.clear()
        await settle(60)
        exchange = hosting.infer("a")
        await settle()

    assert read(exchange).status == 200


async def test_trouble_of_another_kind_is_a_failed_load_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hosting = Hosting(loads=Loads(errors={"a": ZeroDivisionError("x")}))
    async with hosting.pool:
        hosting.declare(entry("a"))
        exchange = hosting.infer("a")
        await settle()

    assert read(exchange).status == 503
    assert hosting.model("a").reason == "ZeroDivisionError"
    assert "loading failed" in caplog.text


async def test_a_load_that_hangs_ends_at_its_time_and_blocks_no_other() -> None:
    loads = Loads(seconds={"slow": 1e6})
    hosting = Hosting(loads=loads, load_timeout_s=5.0)
    async with hosting.pool:
        hosting.declare(entry("slow"), entry("good"))
        slow, good = hosting.infer("slow"), hosting.infer("good")
        await settle(4.0)
        assert good.answer is None  # loads happen one at a time
        await settle(2.0)
        again = hosting.infer("good")
        await settle(2.0)

    assert read(slow).status == 503
    assert "within 5 s" in error_of(slow)
    assert hosting.model("slow").reason == "it did not load within 5 s"
    assert read(again).status == 200


async def test_few_are_tried_at_once() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(*(entry(f"m{i}") for i in range(10)))
        exchanges = [hosting.infer(f"m{i}") for i in range(10)]
        await settle(5.0)

    assert {read(one).status for one in exchanges} == {200}
    assert hosting.trier.most_at_once == 4


async def test_more_than_may_wait_are_refused_and_may_come_again() -> None:
    hosting = Hosting(max_waiting=2)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        waiting = [hosting.infer("a"), hosting.infer("b")]
        refused = hosting.infer("a")
        assert read(refused).status == 503
        assert "2 requests already wait for models" in error_of(refused)
        await settle()
        later = hosting.infer("a")
        await settle()

    assert {read(one).status for one in [*waiting, later]} == {200}


async def test_a_caller_waits_for_a_load_no_longer_than_it_says() -> None:
    hosting = Hosting(trier=Trier(seconds={"a": 10.0}))
    async with hosting.pool:
        hosting.declare(entry("a"))
        exchange = hosting.infer("a", {"x-headrace-timeout-s": "0.5"})
        wrong = hosting.infer("a", {"x-headrace-timeout-s": "soon"})
        await settle(0.4)
        assert exchange.answer is None
        await settle(0.2)

    assert read(exchange).status == 504
    assert read(wrong).status == 400
    assert hosting.model("a").waiting == 0


async def test_who_leaves_while_waiting_is_forgotten_and_counted() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"))
        gone, stays = hosting.infer("a"), hosting.infer("a")
        hosting.application.cancel(gone)
        await settle()
        hosting.application.cancel(stays)  # answered already

    assert gone.answer is None
    assert read(stays).status == 200
    statistics = hosting.pool.models["a", "1"].state.statistics
    assert statistics.failures["CANCELED"] == 1
    assert RequestCancelledError.code == "CANCELLED"


async def test_who_leaves_while_queued_is_cancelled_in_its_engine() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"))
        hosting.infer("a")
        await settle()
        gone = hosting.infer("a")
        assert hosting.model("a").in_flight == 1
        hosting.application.cancel(gone)
        await settle()

    assert gone.answer is None
    assert hosting.pool.models["a", "1"].state.statistics.failures["CANCELED"] == 1


# Declaring


async def test_a_pool_is_ready_once_it_was_told_its_models() -> None:
    hosting = Hosting()
    async with hosting.pool:
        before = hosting.ask("GET", "/v2/health/ready")
        told = hosting.declare()
        after = hosting.ask("GET", "/v2/health/ready")
        hosting.pool.is_draining = True
        draining = hosting.ask("GET", "/v2/health/ready")

    assert [read(one).status for one in (before, told, after, draining)] == [503, 200, 200, 503]
    assert read(told).json["digest"] == models_digest([])


async def test_declaring_the_same_again_touches_nothing() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        hosting.infer("a")
        await settle()
        before = hosting.pool.models["a", "1"]
        told = hosting.declare(entry("b"), entry("a"))

    assert hosting.pool.models["a", "1"] is before
    assert hosting.model("a").phase == "loaded"
    assert read(told).json["digest"] == models_digest([entry("a"), entry("b")])


async def test_what_is_declared_no_more_ends_with_the_requests_it_has() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        hosting.infer("a")
        hosting.infer("b")
        await settle()
        last = hosting.infer("a")
        hosting.declare(entry("b"))
        refused = hosting.infer("a")
        await settle()
        other = hosting.infer("b")
        await settle()

    assert read(last).status == 200
    assert read(refused).status == 404
    assert read(other).status == 200
    assert len(hosting.loads.freed) == 1
    assert hosting.pool.report().loaded_bytes == 10


async def test_a_model_whose_freeing_fails_costs_nobody_else_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(Loads):
        async def free(self, loaded: LoadedModel) -> None:
            await super().free(loaded)
            raise ZeroDivisionError

    hosting = Hosting(loads=Stubborn(), max_loaded=1)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        hosting.infer("a")
        await settle()
        evicting = hosting.infer("b")
        await settle()
        hosting.declare(entry("a"))  # b is retired
        await settle()
        again = hosting.infer("a")
        await settle()

    assert [read(exchange).status for exchange in (evicting, again)] == [200, 200]
    assert caplog.text.count("freeing failed") == 2


async def test_a_model_whose_run_does_not_end_is_let_go_but_not_freed() -> None:
    stuck = a_model()
    stuck.concurrent = False  # its runs have a thread
    hosting = Hosting(loads=Loads(models={"a": stuck}), drain_timeout_s=3.0)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        first = hosting.infer("a")
        stuck.gate.clear()
        await settle()
        hosting.declare(entry("b"))
        await settle(5.0)
        other = hosting.infer("b")
        await settle()
    stuck.gate.set()

    assert read(first).status == 503
    assert read(other).status == 200
    assert hosting.loads.freed == []


async def test_requests_that_wait_for_what_is_removed_hear_of_it_at_once() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        waiting = hosting.infer("a")
        hosting.declare(entry("b"))
        assert read(waiting).status == 404
        await settle()

    assert hosting.loads.loaded == []


async def test_requests_that_wait_for_what_is_replaced_get_the_new_one() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"))
        waiting = hosting.infer("a")
        hosting.declare(entry("a", path="other"))
        await settle()

    assert read(waiting).status == 200
    assert hosting.trier.tried == ["a", "a"]
    assert hosting.loads.loaded == ["a"]


async def test_two_models_of_one_name_and_version_are_refused() -> None:
    hosting = Hosting()
    async with hosting.pool:
        told = hosting.declare(entry("a"), entry("a", path="other"))

    assert read(told).status == 400
    assert hosting.pool.models == {}


# Routes


async def test_of_several_versions_the_gateway_the_path_or_age_decides() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(*(entry("a", version) for version in ("9", "10", "beta")))
        asked = [
            hosting.infer("a"),
            hosting.infer("a", {"x-headrace-version": "9"}),
            hosting.infer("a/versions/9"),
            hosting.infer("a", {"x-headrace-version": "8"}),
            hosting.infer("a/versions/8"),
        ]
        await settle()

    answers = [read(one) for one in asked]
    assert [answer.json.get("model_version") for answer in answers[:3]] == ["10", "9", "9"]
    assert [answer.status for answer in answers[3:]] == [404, 404]


async def test_metadata_load_a_model_once_and_outlive_its_unloading() -> None:
    hosting = Hosting(max_loaded=1)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        first = hosting.ask("GET", "/v2/models/a")
        await settle()
        hosting.infer("b")
        await settle()
        later = hosting.ask("GET", "/v2/models/a")
        config = hosting.ask("GET", "/v2/models/a/versions/1/config")
        openapi = hosting.ask("GET", "/v2/models/a/openapi.json")

    assert read(first).json == read(later).json
    assert read(config).json["name"] == "a"
    assert "/v2/models/a/infer" in read(openapi).json["paths"]
    assert hosting.loads.loaded == ["a", "b"]


async def test_questions_about_models_and_the_process_load_nothing() -> None:
    hosting = Hosting(port=0)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        asked = {
            path: hosting.ask("GET", path)
            for path in (
                "/",
                "/openapi.json",
                "/docs",
                "/v2",
                "/v2/health/live",
                "/v2/models",
                "/v1/models",
                "/v2/models/a/ready",
                "/v1/models/a",
                "/v2/models/a/stats",
                "/v2/models/stats",
                "/metrics",
                "/internal/models",
                "/internal/report",
                "/internal/report?model=a&version=1",
            )
        }
        index = hosting.ask("POST", "/v2/repository/index")
        load = hosting.ask("POST", "/v2/repository/models/a/load")
        lost = hosting.ask("GET", "/v2/models/c")
        lost_report = hosting.ask("GET", "/internal/report?model=c")
        wrong = hosting.ask("PUT", "/v2/models/a/infer")
        head = hosting.ask("HEAD", "/v2/health/live")
        await settle()

    assert {path: read(one).status for path, one in asked.items()} == dict.fromkeys(asked, 200)
    assert read(asked["/v2/models"]).json == {"models": ["a", "b"]}
    assert read(asked["/v2"]).json["extensions"][-1] == "model_repository"
    assert len(read(asked["/v2/models/stats"]).json["model_stats"]) == 2
    assert read(asked["/internal/report?model=a&version=1"]).json["model"] == "a"
    assert read(asked["/internal/report"]).json["model"] == "pool:small"
    entries = json.loads(read(index).body)
    assert [(one["name"], one["state"]) for one in entries] == [("a", "READY"), ("b", "READY")]
    assert [read(one).status for one in (load, lost, lost_report, wrong)] == [503, 404, 404, 405]
    assert read(head).status == 200
    assert hosting.trier.tried == []


async def test_the_index_says_which_are_loading_or_failed() -> None:
    hosting = Hosting(port=0, trier=Trier(seconds={"slow": 5.0}, errors={"bad": "no"}))
    async with hosting.pool:
        hosting.declare(*map(entry, ("good", "slow", "bad")))
        for name in ("good", "slow", "bad"):
            hosting.infer(name)
        await settle()
        index = hosting.ask("POST", "/v2/repository/index")

    states = {one["name"]: (one["state"], one["reason"]) for one in json.loads(read(index).body)}
    assert states == {
        "good": ("READY", ""),
        "slow": ("LOADING", ""),
        "bad": ("UNAVAILABLE", "no"),
    }


async def test_internal_routes_are_for_the_socket_only() -> None:
    hosting = Hosting()
    async with hosting.pool:
        exchange = Caller(is_local=False).request("PUT", "/internal/models", b"[]")
        hosting.application.handle(exchange)

    assert read(exchange).status == 404
    assert hosting.pool.digest == ""


async def test_each_model_is_observed_for_itself() -> None:
    hosting = Hosting()
    body = b'{"key": "r1", "predictions": true, "answers_percent": 100}'
    split = {"x-headrace-split": "r1", "x-request-id": "a"}
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        hosting.ask("PUT", "/internal/observe?model=a&version=1", body)
        for name in ("a", "b"):
            hosting.infer(name, split)
        await settle()
        report = hosting.ask("GET", "/internal/report?model=a&version=1")
        other = hosting.ask("GET", "/internal/report?model=b&version=1")
        answers = hosting.ask("GET", "/internal/answers?model=a&version=1&after=0")

    assert read(report).json["predictions"]["counts"] == {"1": 1}
    assert read(other).json["predictions"] is None
    page = msgspec.msgpack.decode(read(answers).body, type=AnswersPage)
    assert [answer.answer_id for answer in page.answers] == ["a"]
    assert Observe(key="r1").key == "r1"


async def test_each_model_is_recorded_for_itself_also_the_request_that_loads_it() -> None:
    hosting = Hosting()
    body = b'{"traces": true, "sample_ratio": 1.0}'
    traced = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "x-request-id": "r"}
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        hosting.ask("PUT", "/internal/record?model=a&version=1", body)
        for name in ("a", "b"):
            hosting.infer(name, traced)
        await settle()
        spans = hosting.ask("GET", "/internal/spans?model=a&version=1&after=0")
        others = hosting.ask("GET", "/internal/spans?model=b&version=1&after=0")
        samples = hosting.ask("GET", "/internal/samples?model=a&version=1&after=0")

    names = [span[2] for span in read(spans).json["spans"]]
    page = msgspec.msgpack.decode(read(samples).body, type=SamplesPage)
    assert names == ["infer a", "preprocess", "queue", "batch", "runtime", "postprocess"]
    assert read(others).json["spans"] == []
    assert [sample.request_id for sample in page.samples] == ["r"]


async def test_a_bug_of_ours_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    hosting = Hosting()
    async with hosting.pool:
        monkeypatch.setattr(hosting.pool, "report", lambda: 1 / 0)
        exchange = hosting.ask("GET", "/internal/models")

    assert read(exchange).status == 500


# Every protocol


async def test_v1_waits_for_its_model_too() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"))
        exchange = hosting.ask("POST", "/v1/models/a:predict", b'{"instances": [[1, 2]]}')
        await settle()

    assert read(exchange).status == 200
    assert read(exchange).json["predictions"]


def call(hosting: Hosting, rpc: str, **fields: object) -> Exchange:
    message = message_class(f"inference.{rpc}Request")(**fields)
    if rpc == "ModelInfer":
        tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        tensor.contents.fp32_contents.extend([1, 2])
    return raw_call(hosting, f"inference.GRPCInferenceService/{rpc}", message)


def raw_call(hosting: Hosting, path: str, message: object) -> Exchange:
    body = frame(message.SerializeToString())  # type: ignore[attr-defined]  # a generated class
    return hosting.ask("POST", "/" + path, body, {"content-type": "application/grpc"})


def said(exchange: Exchange, rpc: str) -> object:
    return message_class(f"inference.{rpc}Response").FromString(unframe(read(exchange).body))


async def test_grpc_finds_its_model_by_name() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b", "2"))
        infer = call(hosting, "ModelInfer", model_name="b")
        metadata = call(hosting, "ModelMetadata", name="a", version="1")
        config = call(hosting, "ModelConfig", name="b")
        ready = call(hosting, "ModelReady", name="a")
        lost_ready = call(hosting, "ModelReady", name="c")
        lost = call(hosting, "ModelInfer", model_name="c")
        of_one = call(hosting, "ModelStatistics", name="b")
        of_all = call(hosting, "ModelStatistics")
        await settle()

    found = said(infer, "ModelInfer")
    assert (found.model_name, found.model_version) == ("b", "2")  # type: ignore[attr-defined]
    assert said(metadata, "ModelMetadata").name == "a"  # type: ignore[attr-defined]
    assert said(config, "ModelConfig").config.name == "b"  # type: ignore[attr-defined]
    assert said(ready, "ModelReady").ready  # type: ignore[attr-defined]
    assert not said(lost_ready, "ModelReady").ready  # type: ignore[attr-defined]
    assert "grpc-status: 5" in read(lost).head
    assert len(said(of_one, "ModelStatistics").model_stats) == 1  # type: ignore[attr-defined]
    assert len(said(of_all, "ModelStatistics").model_stats) == 2  # type: ignore[attr-defined]


async def test_grpc_answers_about_the_process() -> None:
    hosting = Hosting()
    health = message_class("grpc.health.v1.HealthCheckRequest")
    async with hosting.pool:
        hosting.declare(entry("a"))
        live = call(hosting, "ServerLive")
        ready = call(hosting, "ServerReady")
        metadata = call(hosting, "ServerMetadata")
        index = call(hosting, "RepositoryIndex")
        memory = call(hosting, "SystemSharedMemoryStatus")
        check = raw_call(hosting, "grpc.health.v1.Health/Check", health(service="a"))
        unknown = raw_call(hosting, "grpc.health.v1.Health/Check", health(service="c"))
        plain = hosting.ask("POST", "/inference.GRPCInferenceService/ModelInfer", b"{}")

    assert said(live, "ServerLive").live  # type: ignore[attr-defined]
    assert said(ready, "ServerReady").ready  # type: ignore[attr-defined]
    assert said(metadata, "ServerMetadata").name == "headrace"  # type: ignore[attr-defined]
    assert unframe(read(check).body) == b"\x08\x01"
    statuses = [read(one).head for one in (index, memory, unknown)]
    assert ["grpc-status: 7" in statuses[0], "grpc-status: 12" in statuses[1]] == [True, True]
    assert "grpc-status: 5" in statuses[2]
    assert read(plain).status == 400


# Figures


async def test_metrics_of_many_models_stand_together_and_add_up() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b", "1"), entry("b", "2"), entry("unused"))
        for path in ("a", "b/versions/1", "b/versions/2", "b/versions/2"):
            hosting.infer(path)
        await settle()
        scrape = hosting.ask("GET", "/metrics")
        await settle()
        text = read(scrape).body.decode()

    lines = text.splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    heads = [line for line in lines if line.startswith("# TYPE")]
    assert len(series) == len(set(series))
    assert len(heads) == len(set(heads))
    assert 'nv_inference_request_success{model="b",version="2"} 2' in lines
    assert 'request_predict_seconds_count{model_name="b"} 3' in lines
    assert 'headrace_pool_model_loaded{model="a",version="1"} 1' in lines
    assert 'headrace_pool_loaded_bytes{pool="small"} 30' in lines
    assert 'headrace_pool_model_loaded{model="unused",version="1"} 0' in lines
    assert not any("unused" in line for line in lines if line.startswith("nv_"))


@pytest.mark.parametrize("count", [1, 20])
async def test_brief_metrics_are_few_of_the_same_series(count: int) -> None:
    """Of 75 models the whole was 7.5 MB a scrape."""
    names = [f"m{number}" for number in range(count)]
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(*map(entry, names))
        for name in names:
            hosting.infer(name)
            await settle()
        scrapes = [hosting.ask("GET", path) for path in ("/metrics", "/metrics?exemplars&brief")]
        await settle()
        whole, brief = (read(scrape).body.decode().splitlines() for scrape in scrapes)

    series = {line.rpartition(" ")[0] for line in whole}
    in_brief = [line.rpartition(" ")[0] for line in brief]
    assert set(in_brief) <= series
    assert {line for line in whole if "_count{" in line and "request_p" not in line} <= set(brief)
    for name in names:
        assert sum(f'model="{name}"' in line for line in in_brief) < 150
        assert sum(f'model="{name}"' in line for line in series) > 450
    assert not any(line.startswith("request_p") for line in brief)


async def test_figures_that_cannot_be_told_cost_nobody_else_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"))
        hosting.infer("a")
        await settle()
        monkeypatch.setattr(hosting.pool, "report", lambda: 1 / 0)
        scrape = hosting.ask("GET", "/metrics")
        await settle()
        exchange = hosting.infer("a")
        await settle()

    assert read(scrape).status == 500
    assert read(exchange).status == 200


async def test_the_totals_are_the_sums_of_the_models() -> None:
    hosting = Hosting(trier=Trier(seconds={"b": 5.0}))
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        for name in ("a", "a", "b"):
            hosting.infer(name)
        bad = infer_body((BAD, 1))
        hosting.ask("POST", "/v2/models/a/infer", bad)
        await settle()
        told = read(hosting.ask("GET", "/internal/report")).json
        one = read(hosting.ask("GET", "/internal/report?model=b")).json

    assert (told["received"], told["answered"], told["failed"]) == (4, 2, 1)
    assert (told["in_flight"], told["queued"]) == (1, 1)
    assert sum(told["request"]) == 2
    assert (one["in_flight"], one["queued"], one["received"]) == (1, 1, 1)


# The end


async def test_stopping_answers_what_is_in_and_frees_all_models() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"))
        hosting.infer("a")
        await settle()
        last = hosting.infer("a")
        await hosting.pool.stop(timeout_s=5.0)

    assert read(last).status == 200


async def test_leaving_the_pool_ends_loads_that_are_under_way() -> None:
    hosting = Hosting(trier=Trier(seconds={"a": 1e6}), load_timeout_s=1e9)
    async with hosting.pool:
        hosting.declare(entry("a"))
        hosting.infer("a")
        await settle()

    assert hosting.trier.at_once == 0


async def test_what_is_to_be_kept_stays_as_it_is_and_what_was_never_hosted_is_not_made_up() -> None:
    hosting = Hosting()
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b", version="2"))
        body = msgspec.json.encode([entry("c")])
        path = "/internal/models?keep=b/2&keep=nobody/1&keep=c/1&keep=odd"
        told = hosting.ask("PUT", path, body)
        await settle()
        names = sorted(hosting.pool.models)
        hosting.declare(entry("c"))
        await settle()

    assert read(told).status == 200
    assert names == [("b", "2"), ("c", "1")]
    assert sorted(hosting.pool.models) == [("c", "1")]


# Models that do not lie on its machine


async def test_a_model_is_fetched_before_it_is_tried_and_loaded() -> None:
    fetches = Fetches()
    hosting = Hosting(fetches=fetches)
    async with hosting.pool:
        hosting.declare(entry("a", path="stored-a"), entry("b", path="stored-b"))
        exchange = hosting.infer("a")
        await settle()

    assert read(exchange).status == 200
    assert fetches.fetched == ["stored-a"]
    assert hosting.trier.paths == hosting.loads.paths == ["/here/stored-a"]


async def test_who_asks_for_what_cannot_be_fetched_is_told_and_others_do_not_notice() -> None:
    fetches = Fetches(errors={"a": UnavailableError("its files cannot be fetched: no answer")})
    hosting = Hosting(fetches=fetches)
    async with hosting.pool:
        hosting.declare(entry("a"), entry("b"))
        refused, answered = hosting.infer("a"), hosting.infer("b")
        await settle()
        report = hosting.model("a")
        fetches.errors.clear()
        await settle(2.0)
        again = hosting.infer("a")
        await settle()

    assert [read(one).status for one in (refused, answered, again)] == [503, 200, 200]
    assert (report.phase, report.reason) == ("failed", "its files cannot be fetched: no answer")


async def test_what_takes_longer_to_fetch_than_requests_wait_is_there_for_later_ones() -> None:
    fetches = Fetches(seconds={"a": 60.0})
    hosting = Hosting(fetches=fetches, load_timeout_s=30.0)
    async with hosting.pool:
        hosting.declare(entry("a"))
        first = hosting.infer("a")
        await settle(40.0)
        second = hosting.infer("a")
        await settle(25.0)

    assert [read(one).status for one in (first, second)] == [503, 200]
    assert len(fetches.fetched) == 1


async def test_the_files_of_what_is_hosted_no_more_are_forgotten_when_it_is_free() -> None:
    fetches = Fetches()
    hosting = Hosting(fetches=fetches)
    async with hosting.pool:
        hosting.declare(entry("a", path="old"), entry("b", path="other"))
        hosting.infer("a")
        await settle()
        hosting.declare(entry("a", path="new"), entry("b", path="other"))
        await settle()
        was_freed = len(hosting.loads.freed)

    assert was_freed == 1
    assert fetches.forgotten == [("old", ["new", "other"])]


@pytest.mark.parametrize("path", ["/v2/models/a/infer", "/v1/models/a:predict"])
async def test_before_it_was_told_its_models_another_copy_is_to_be_asked(path: str) -> None:
    hosting = Hosting()
    async with hosting.pool:
        exchange = hosting.ask("POST", path, infer_body((1, 2)))
        await settle()

    answer = read(exchange)
    assert answer.status == 503
    assert "x-headrace-not-started: 1" in answer.head
