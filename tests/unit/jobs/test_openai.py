"""A batch of OpenAI requests has one result per line, whatever its lines, answers and kills."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.client.answers import ConnectionLostError, ProtocolError
from headrace.client.conversation import Attempts, SendMessage
from headrace.client.http_transport import HttpReply
from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnauthenticatedError,
    UnavailableError,
)
from headrace.jobs import openai_lines
from headrace.jobs.openai import OpenaiBatch
from headrace.jobs.openai_lines import BatchCounts
from headrace.testing import LoopClock, VirtualTimeLoop

CHAT = "/v1/chat/completions"


def line(custom_id: object, url: str = CHAT, **body: object) -> bytes:
    document = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(document).encode() + b"\n"


def reply(status: int, content: object, **headers: str) -> HttpReply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpReply(status=status, headers=named, body=body)


Answer = Callable[[int], HttpReply | Exception]


@dataclass
class Gateway:
    """Answers each request with its body's `say`, after it was asked `after` times."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    delay_s: float = 0.0

    async def send(self, send: SendMessage) -> object:
        say = json.loads(send.message.content)["say"]
        self.seen[say] += 1
        await asyncio.sleep(self.delay_s)
        answer_to = self.answers.get(say)
        if answer_to is None:
            return reply(200, {"said": say}, x_request_id="r1")
        answer = answer_to(self.seen[say])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Nothing to close."""


def run(
    folder: Path,
    gateway: Gateway,
    seen: list[float] | None = None,
    *,
    timeout_s: float = 600.0,
    retry_for_s: float = 600.0,
    **changes: object,
) -> BatchCounts:
    """Run the batch of `in.jsonl` in virtual time; `seen` gets the seconds that it took."""
    values: dict[str, Any] = {"input": folder / "in.jsonl", "output": folder / "out.jsonl"}

    async def main() -> BatchCounts:
        clock = LoopClock()
        attempts = Attempts.of_offline_run(
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
            clock=clock,
            random=Random(1),  # noqa: S311  # a test
        )
        parts: dict[str, Any] = {"transport": gateway, "clock": clock, "attempts": attempts}
        batch = OpenaiBatch(**values | changes | parts)
        try:
            return await batch.run()
        finally:
            if seen is not None:
                seen.append(clock.monotonic())

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_bytes().splitlines()]


def test_results_are_in_the_order_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(line(f"c{i}", say=f"t{i}") for i in range(100)))

    counts = run(tmp_path, Gateway(delay_s=0.1))

    assert (counts.total, counts.completed, counts.failed) == (100, 100, 0)
    found = results(tmp_path / "out.jsonl")
    assert [result["custom_id"] for result in found] == [f"c{i}" for i in range(100)]
    assert [result["id"][-8:] for result in found] == [f"{i + 1:08d}" for i in range(100)]
    assert found[7]["response"] == {
        "status_code": 200, "request_id": "r1", "body": {"said": "t7"}
    }  # fmt: skip
    assert found[7]["error"] is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


REFUSED: list[tuple[bytes, str, str | None]] = [
    (b"no json\n", "invalid_json_line", None),
    (b"[1]\n", "invalid_json_line", None),
    (b'{"custom_id": "a"\n', "invalid_json_line", None),
    (b'{"custom_id": "a\xff", "x": 1}\n', "invalid_json_line", None),
    (b"[" * 50_000 + b"\n", "invalid_json_line", None),
    (b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}\n', "invalid_request", "a"),
    (line(3, say="a"), "invalid_request", None),
    (line("", say="a"), "invalid_request", ""),
    (line("i" * 600, say="a"), "invalid_request", "i" * 512),
    (line("a", say="a").replace(b"POST", b"GET"), "invalid_request", "a"),
    (line("a", stream=True), "invalid_request", "a"),
    (line("a", stream="yes"), "invalid_request", "a"),
    (line("a").replace(b"{}", b"[]"), "invalid_request", "a"),
    (line("a").replace(b"{}", b"null"), "invalid_request", "a"),
    (line("a", url="/v1/embeddings/../files"), "url_mismatch", "a"),
    (line("a", url="http://elsewhere/v1/embeddings"), "url_mismatch", "a"),
    (line("a", url="/v1/completions"), "url_mismatch", "a"),
]


def test_an_invalid_line_gets_its_own_error(tmp_path: Path) -> None:
    content = b"".join(refused for refused, _, _ in REFUSED)
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + line("ok", say="x") + b"  \n" + content)
    gateway = Gateway()

    counts = run(tmp_path, gateway, path=CHAT)

    assert (counts.completed, counts.failed) == (1, len(REFUSED))
    found = results(tmp_path / "out.jsonl")
    assert found[0]["response"]["status_code"] == 200
    told = [(result["error"]["code"], result["custom_id"]) for result in found[1:]]
    assert told == [(code, custom_id) for _, code, custom_id in REFUSED]
    assert gateway.seen.total() == 1


def test_a_repeated_id_and_a_huge_line_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_lines, "MAX_LINE_BYTES", 1000)
    huge = line("huge", say="x" * 3_000_000)
    content = line("a", say="a") + huge + line("a", say="b") + line("b", say="c").rstrip()
    (tmp_path / "in.jsonl").write_bytes(content)

    run(tmp_path, Gateway())

    found = results(tmp_path / "out.jsonl")
    codes = [result["error"] and result["error"]["code"] for result in found]
    assert codes == [None, "invalid_request", "duplicate_custom_id", None]
    assert "longer than 1000 bytes" in found[1]["error"]["message"]
    assert found[2]["custom_id"] == "a"


def test_failed_requests_go_to_the_error_file(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(line("a", say="a") + line("b", say="b") + b"{}\n")
    gateway = Gateway({"b": lambda _: reply(404, {"error": {"code": "model_not_found"}})})

    counts = run(tmp_path, gateway, error_file=tmp_path / "errors.jsonl")

    assert (counts.completed, counts.failed) == (1, 2)
    assert [result["custom_id"] for result in results(tmp_path / "out.jsonl")] == ["a"]
    refused, invalid = results(tmp_path / "errors.jsonl")
    assert refused["response"]["status_code"] == 404
    assert refused["error"] is None
    assert (invalid["response"], invalid["error"]["code"]) == (None, "invalid_request")
    again = run(tmp_path, gateway, error_file=tmp_path / "errors.jsonl")
    assert (again.resumed, again.failed, gateway.seen.total()) == (3, 2, 2)
    with pytest.raises(FailedPreconditionError, match="1 results for 3 requests"):
        run(tmp_path, gateway)


def test_answers_keep_their_bytes_and_take_one_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(line("a", say="a"))
    numbers = b"[0.1000000000000000055, 1e400, 123456789012345678901234567890]"
    body = b'\n{\r\n "v": ' + numbers + b',\n "t": "\\n"}\n'

    run(tmp_path, Gateway({"a": lambda _: reply(200, body)}))

    (text,) = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert numbers in text


@pytest.mark.parametrize("body", [b"data: {}\n\n", b"<html>", b"", b'{"a": NaN}', b'{"a": "\xff"}'])
def test_an_answer_that_is_not_json_is_an_error(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(line("a", say="a") + line("b", say="b"))
    answers: dict[str, Answer] = {
        "a": lambda _: reply(502, body),
        "b": lambda _: ProtocolError("larger than 5 bytes"),
    }

    run(tmp_path, Gateway(answers))

    first, second = results(tmp_path / "out.jsonl")
    assert first["error"]["code"] == second["error"]["code"] == "invalid_response"
    assert "status 502" in first["error"]["message"]


def test_a_refused_request_is_retried_after_the_time_that_the_server_names(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(line(word, say=word) for word in "abc"))
    answers: dict[str, Answer] = {
        "a": lambda tries: reply(429, {}, retry_after="20") if tries < 4 else reply(200, {}),
        "b": lambda tries: reply(503, {}) if tries < 3 else reply(200, {}),
        "c": lambda tries: ConnectionLostError("lost") if tries < 3 else reply(200, {}),
    }
    took: list[float] = []

    counts = run(tmp_path, Gateway(answers), took)

    assert (counts.completed, counts.failed, counts.retries) == (3, 0, 7)
    assert 60 <= took[0] <= 65


def test_retries_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(line(word, say=word) for word in "ab"))
    answers = {
        "a": lambda _: reply(429, {"error": {"code": "rate_limit_exceeded"}}, retry_after="7"),
        "b": lambda _: reply(429, {"error": {"code": "for_a_day"}}, retry_after="80000"),
    }
    gateway = Gateway(answers)
    took: list[float] = []

    counts = run(tmp_path, gateway, took, retry_for_s=60.0)

    assert counts.failed == 2
    assert took[0] <= 60
    assert gateway.seen["b"] == 1
    statuses = [result["response"]["status_code"] for result in results(tmp_path / "out.jsonl")]
    assert statuses == [429, 429]


def test_a_slow_answer_is_a_timeout_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(line("a", say="a"))

    run(tmp_path, Gateway(delay_s=100.0), timeout_s=5.0)

    (result,) = results(tmp_path / "out.jsonl")
    message = "the server did not answer within 5 s"
    assert result["error"] == {"code": "request_timeout", "message": message}


def test_a_batch_expires_and_is_cancelled(tmp_path: Path) -> None:
    content = b"".join(line(f"c{i}", say=f"t{i}") for i in range(10))
    (tmp_path / "in.jsonl").write_bytes(content)
    start = 1_700_000_000.0
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        start = runner.run(_now())

    counts = run(tmp_path, Gateway(delay_s=3.0), concurrency=2, expires_at=start + 7.0)

    assert (counts.completed, counts.failed) == (4, 6)
    codes = [
        result["error"] and result["error"]["code"] for result in results(tmp_path / "out.jsonl")
    ]
    assert codes == [None] * 4 + ["batch_expired"] * 6
    gateway = Gateway()
    counts = run(tmp_path, gateway, output=tmp_path / "other.jsonl", is_cancelled=True)
    assert (counts.failed, gateway.seen.total()) == (10, 0)
    codes = [result["error"]["code"] for result in results(tmp_path / "other.jsonl")]
    assert codes == ["batch_cancelled"] * 10


async def _now() -> float:
    return LoopClock().now()


def test_a_run_that_cannot_succeed_stops_and_continues_later(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(line(f"c{i}", say=f"t{i}") for i in range(5)))
    away = Gateway({f"t{i}": lambda _: UnavailableError("no server") for i in range(3, 5)})
    with pytest.raises(UnavailableError, match="no server"):
        run(tmp_path, away, retry_for_s=30.0)
    denied = Gateway({f"t{i}": lambda _: reply(401, {}) for i in range(5)})
    with pytest.raises(UnauthenticatedError):
        run(tmp_path, denied)
    assert not (tmp_path / "out.jsonl").exists()

    counts = run(tmp_path, Gateway())

    assert (counts.completed, counts.resumed) == (5, 3)


def test_a_revoked_key_is_the_error_of_later_lines(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(line("a", say="a") + line("b", say="b"))

    counts = run(tmp_path, Gateway({"b": lambda _: reply(401, {})}), concurrency=1)

    assert (counts.completed, counts.failed) == (1, 1)


def test_another_input_and_other_files_are_left_alone(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(line("a", say="a"))
    output.write_text("mine\n")
    with pytest.raises(FailedPreconditionError, match="is not the output of"):
        run(tmp_path, Gateway())
    with pytest.raises(FailedPreconditionError, match="is not the output of"):
        run(tmp_path, Gateway(), output=source)
    with pytest.raises(FailedPreconditionError, match="is not the output of"):
        run(tmp_path, Gateway(), output=tmp_path / "new.jsonl", error_file=output)
    with pytest.raises(InvalidArgumentError, match="must differ"):
        run(tmp_path, Gateway(), error_file=output)
    with pytest.raises(FailedPreconditionError, match="No such file"):
        run(tmp_path, Gateway(), input=tmp_path / "none.jsonl")
    assert output.read_text() == "mine\n"
    output.unlink()
    (tmp_path / ".out.jsonl.partial").write_bytes(
        b'{"id":"batch_req_0123456789abcdef_00000001","custom_id":"a"}\n'
    )
    with pytest.raises(FailedPreconditionError, match="results of another input"):
        run(tmp_path, Gateway())


def test_an_input_that_changes_during_the_run_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(line("a", say="a"))

    def change(_: int) -> HttpReply:
        source.write_bytes(line("a", say="other"))
        return reply(200, {})

    with pytest.raises(FailedPreconditionError, match="changed during the run"):
        run(tmp_path, Gateway({"a": change}))
    assert not (tmp_path / "out.jsonl").exists()


LINES = 12


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(answered=st.integers(0, LINES), torn=st.integers(0, 120), zeros=st.integers(0, 1))
def test_a_kill_at_any_byte_leads_to_the_same_output(
    tmp_path_factory: pytest.TempPathFactory, answered: int, torn: int, zeros: int
) -> None:
    folder = tmp_path_factory.mktemp("batch")
    content = b"".join(line(f"c{i}", say=f"t{i}") for i in range(LINES - 1)) + b"{}\n"
    (folder / "in.jsonl").write_bytes(content)
    run(folder, Gateway())
    output, journal = folder / "out.jsonl", folder / ".out.jsonl.partial"
    undisturbed = output.read_bytes()
    shuffled = undisturbed.splitlines(keepends=True)
    Random(3).shuffle(shuffled)  # noqa: S311  # a test
    left = b"".join(shuffled[:answered])
    left += (b"\0" * 40 + b"\n") if zeros else b""
    left += b"".join(shuffled[answered:])[:torn]
    whole = left.count(b"\n") - zeros
    journal.write_bytes(left)
    output.unlink()
    gateway = Gateway()

    counts = run(folder, gateway)

    assert output.read_bytes() == undisturbed
    assert counts.resumed == whole
    assert counts.completed == LINES - 1
    assert gateway.seen.total() <= LINES - whole
    assert not journal.exists()
