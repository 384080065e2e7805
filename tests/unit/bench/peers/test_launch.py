import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.peers import models
from bench.peers.catalog import PEERS
from bench.peers.environments import REQUIREMENTS, ROOT, last_words, pinned
from bench.peers.launch import triton_config, write_archive
from bench.peers.models import Model
from bench.peers.running import Server
from bench.peers.suites import NAMES, PAIRED, latency, opened


class Tiny(Model):
    def expected(self, row: models.Tensors) -> dict[str, models.Array]:
        return {"prob": np.zeros((len(row), 2), np.float32)}


def tiny(*, max_batch: int = 32) -> Model:
    row = {"input": np.zeros((1, 32), np.float32)}
    return Tiny(name="mlp", path=Path("/none"), rows=[row], max_batch=max_batch)


def test_triton_is_told_shapes_without_the_batch_axis() -> None:
    text = triton_config(tiny())

    assert 'name: "input" data_type: TYPE_FP32 dims: [32]' in text
    assert "max_batch_size: 32" in text
    assert "dynamic_batching" in text


def test_triton_may_batch_sentences_of_different_lengths() -> None:
    tokens = np.zeros((1, 7), np.int64)
    row = {"input_ids": tokens, "attention_mask": tokens}
    sentences = Tiny(name="minilm", path=Path("/none"), rows=[row], max_batch=4)

    text = triton_config(sentences)

    assert text.count("dims: [-1] allow_ragged_batch: true") == 2
    assert "ragged" not in triton_config(tiny())


def test_triton_batches_nothing_where_a_batch_is_one_row() -> None:
    assert "dynamic_batching" not in triton_config(tiny(max_batch=1))


def test_an_archive_for_torchserve_names_its_handler_and_batch(tmp_path: Path) -> None:
    write_archive(tmp_path / "mlp.mar", tiny())

    with zipfile.ZipFile(tmp_path / "mlp.mar") as archive:
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        assert manifest["model"]["handler"] in archive.namelist()
        assert b"batchSize: 32\n" in archive.read(manifest["model"]["configFile"])


def onnxruntime_of(requirements: Path) -> str:
    lines = requirements.read_text().splitlines()
    (line,) = (one for one in lines if one.startswith("onnxruntime=="))
    return line.partition(" ")[0]


@pytest.mark.parametrize("name", sorted({peer.requirements for peer in PEERS.values()}))
def test_every_peer_has_the_onnx_runtime_that_headrace_has(name: str) -> None:
    ours = onnxruntime_of(ROOT / "requirements" / "base.txt")

    assert onnxruntime_of(REQUIREMENTS / f"{name}.txt") == ours


def test_pins_are_read_without_extras_comments_and_ranges() -> None:
    assert pinned("ray[serve]==1.2  # why\n# numpy==1\nnumpy<2\n\nx==3") == ["ray", "x"]


def test_why_pip_failed_is_the_end_of_what_it_said() -> None:
    assert last_words("a\nb\n c \nd\n") == "b | c | d"


def test_every_suite_asks_models_that_there_are() -> None:
    assert {model for suite in PAIRED for model in suite.asks} == set(models.NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_requests_are_the_same_in_every_run() -> None:
    first, second = models.rows("minilm"), models.rows("minilm")

    assert len(first) == models.ROWS["minilm"]
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(first, second, strict=True))
    assert len({row["input_ids"].shape[1] for row in first}) > 10


def test_shares_that_ask_for_the_same_rate_are_asked_once() -> None:
    assert latency.distinct(latency.SHARES, 100, 6000) == list(latency.SHARES)
    assert latency.distinct(latency.SHARES, 1e6, 6000) == [latency.HALF]
    assert latency.distinct(latency.SHARES, 9600, 6000) == [0.5, 0.25, 0.75]


@pytest.mark.parametrize(("on_time", "highest"), [(30_000, 24_000), (12_000, 12_000), (1, 6000)])
def test_the_generator_is_asked_for_no_more_than_it_sends_on_time(
    monkeypatch: pytest.MonkeyPatch, on_time: float, highest: float
) -> None:
    def lags(_pair: object, _server: object, rate: float, **_: object) -> dict[str, float]:
        return {"lag_p99_s": 0.00001 if rate <= on_time else 0.01}

    monkeypatch.setattr(opened, "send", lags)
    quiet = Server(name="any", part="any", http=1, json=PEERS["mosec"].json)
    pair: Any = SimpleNamespace(ours=quiet, theirs=quiet)

    assert opened.highest_rate(pair) == highest
