"""Pipelines through Envoy: texts and pictures in, classes out, as the same steps say in process."""

import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.cli.up import start
from headrace.client import Client
from headrace.core import Array, InvalidArgumentError, Tensors, example_inputs
from headrace.pipeline import Pipeline, load_pipeline
from headrace.protocol import encode_document
from headrace.protocol.openapi import infer_document
from headrace.testing import models
from tests.e2e.control.system import System
from tests.unit.pipeline.conftest import tokenizer_json
from tests.unit.pipeline.elements import elements

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HEADRACE = Path(sys.executable).parent / "headrace"
TEXTS = ("a river runs to the sea", "snow", "and not one drop comes back but as rain or snow ice")
TEXT = """\
steps:
  - {kind: tokenizer, max_length: 16}
  - {kind: model, path: encoder.onnx}
  - {kind: model, name: head, path: head.onnx, inputs: {x: embedding}, outputs: {y: logits}}
  - {kind: classify, labels: [river, sea, ice]}
"""
PICTURES = """\
steps:
  - {kind: image, size: [32, 32], resize: crop, shorter_side: 40, mean: [0.5], std: [0.25]}
  - {kind: model, path: model.onnx, inputs: {image: pixels}}
  - {kind: classify, labels_file: labels.txt, top_k: 2}
"""
CODE = """\
steps:
  - kind: python
    function: steps.py:double
    inputs: {x: [FP32, [-1, 2]]}
    outputs: {y: [FP32, [-1, 2]]}
"""
DOUBLE = "def double(inputs):\n    return {'y': inputs['x'] * 2}\n"
TOGETHER = {"max_queue_delay_s": 0.5, "max_concurrent_runs": 1}
"""Who asks at the same moment is in the same batch."""


def write(directory: Path, yaml: str, **files: str | bytes) -> Path:
    directory.mkdir(parents=True)
    (directory / "pipeline.yaml").write_text(yaml)
    for name, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        (directory / name.replace("__", ".")).write_bytes(raw)
    return directory


def code_pipeline(folder: Path) -> Path:
    return write(folder / "double", CODE, steps__py=DOUBLE)


def jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    written = io.BytesIO()
    small.resize((60 + seed, 50), Image.Resampling.BICUBIC).save(written, "JPEG", quality=90)
    return written.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    head = models.matmul(features=8, columns=3, seed=4)
    write(
        folder / "texts",
        TEXT,
        tokenizer__json=tokenizer_json(),
        encoder__onnx=models.encoder(),
        head__onnx=head,
    )
    labels = "cat\ndog\nbird\nfish\nant\n"
    write(folder / "pictures", PICTURES, model__onnx=models.image(), labels__txt=labels)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[System]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "home")
        try:
            system.start(
                *(
                    {"name": name, "model": str(folder / name), "batching": TOGETHER}
                    for name in ("texts", "pictures")
                )
            )
            system.wait_ready(120)
            yield system
        finally:
            system.close()


@pytest.fixture(scope="module")
def texts_here(folder: Path) -> Iterator[Pipeline]:
    pipeline = load_pipeline(folder / "texts")
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="module")
def pictures_here(folder: Path) -> Iterator[Pipeline]:
    pipeline = load_pipeline(folder / "pictures")
    yield pipeline
    pipeline.close()


def post(system: System, path: str, document: object) -> tuple[int, Any]:
    return system.call("POST", system.where().http_url + path, document)


def as_lists(answer: Tensors) -> list[tuple[list[str], list[float]]]:
    """Labels and scores, whatever the protocol."""
    labels, scores = answer.values()
    return [
        ([one.decode() for one in np.atleast_1d(row)], np.atleast_1d(score).tolist())
        for row, score in zip(labels, scores, strict=True)
    ]


def assert_same(got: Tensors, want: Tensors) -> None:
    assert list(got) == list(want)
    for mine, theirs in zip(as_lists(got), as_lists(want), strict=True):
        assert mine[0] == theirs[0]
        np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-5)


def test_texts_come_back_as_classes_over_each_protocol(
    served: System, texts_here: Pipeline
) -> None:
    want = texts_here.run({"text": elements(*TEXTS)})
    labels = [label.decode() for label in want["label"]]
    scores = want["score"].tolist()

    tensor = {"name": "text", "datatype": "BYTES", "shape": [3], "data": list(TEXTS)}
    v2 = post(served, "/v2/models/texts/infer", {"inputs": [tensor]})
    v1 = post(served, "/v1/models/texts:predict", {"instances": list(TEXTS)})

    assert (v2[0], v1[0]) == (200, 200)
    assert [(one["name"], one["datatype"]) for one in v2[1]["outputs"]] == [
        ("label", "BYTES"),
        ("score", "FP32"),
    ]
    assert v2[1]["outputs"][0]["data"] == labels
    np.testing.assert_allclose(v2[1]["outputs"][1]["data"], scores, rtol=1e-5)
    assert [one["label"] for one in v1[1]["predictions"]] == labels
    np.testing.assert_allclose([one["score"] for one in v1[1]["predictions"]], scores, rtol=1e-5)
    where = served.where()
    for url in (where.http_url, f"grpc://{where.grpc_target}"):
        with Client(url) as client:  # binary over HTTP, then gRPC
            assert_same(client.infer("texts", {"text": elements(*TEXTS)}).outputs, want)


@pytest.mark.long
def test_pictures_come_back_as_classes_over_each_protocol(
    served: System, pictures_here: Pipeline
) -> None:
    raw = [jpeg(seed) for seed in range(3)]
    want = pictures_here.run({"image": elements(*raw)})

    v1 = post(
        served,
        "/v1/models/pictures:predict",
        {"instances": [{"b64": b64encode(one).decode()} for one in raw]},
    )

    assert v1[0] == 200
    assert [(one["labels"], one["scores"]) for one in v1[1]["predictions"]] == [
        (labels, pytest.approx(scores, rel=1e-5)) for labels, scores in as_lists(want)
    ]
    where = served.where()
    for url in (where.http_url, f"grpc://{where.grpc_target}"):
        with Client(url) as client:
            assert_same(client.infer("pictures", {"image": elements(*raw)}).outputs, want)


@pytest.mark.long
def test_a_wrong_text_or_picture_is_told_with_its_row(served: System) -> None:
    cut_off = b64encode(jpeg(1)[:200]).decode()
    instances = [{"b64": b64encode(jpeg(1)).decode()}, {"b64": cut_off}]
    picture = post(served, "/v1/models/pictures:predict", {"instances": instances})
    words = post(served, "/v1/models/pictures:predict", {"instances": ["a cat"]})
    text = post(served, "/v1/models/texts:predict", {"instances": ["a", {"b64": "//4="}]})

    assert (picture[0], words[0], text[0]) == (400, 400, 400)
    assert "image 1 is not a valid image" in picture[1]["error"]
    assert "image 0 is not a valid image: it is not one of JPEG, PNG" in words[1]["error"]
    assert "text 1 is not UTF-8" in text[1]["error"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "path"),
    [("texts", "/v2/models/texts/infer"), ("pictures", "/v1/models/pictures:predict")],
)
def test_requests_that_are_made_up_for_people_are_answered(
    served: System, name: str, path: str
) -> None:
    url = served.where().http_url
    with Client(url) as client:
        body = encode_document(infer_document(example_inputs(client.signature(name))))
    answer = served.call("POST", f"{url}/v2/models/{name}/infer", json.loads(body))
    words = shlex.split(start.command(url, name))
    shown = subprocess.run(words, capture_output=True, check=True, timeout=30)

    assert answer[0] == 200, answer
    assert words[2] == url + path
    assert "error" not in json.loads(shown.stdout)


def _ask(url: str, name: str, rows: Array, connected: Barrier) -> Tensors | str:
    with Client(url) as client:
        client.ready(name)
        connected.wait(30)
        try:
            return client.infer(name, {_INPUT[name]: rows}).outputs
        except InvalidArgumentError as error:
            return str(error)


_INPUT = {"texts": "text", "pictures": "image"}


def _at_once(system: System, name: str, asked: Sequence[Array]) -> list[Tensors | str]:
    url, connected = system.where().http_url, Barrier(len(asked))
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda rows: _ask(url, name, rows, connected), asked))


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("texts", b"\xff\xfe", "text 1 is not UTF-8"),
        ("pictures", jpeg(0)[:300], "image 1 is not a valid image"),
    ],
)
def test_one_wrong_row_costs_its_own_caller_only(  # noqa: PLR0917  # fixtures
    served: System,
    texts_here: Pipeline,
    pictures_here: Pipeline,
    name: str,
    bad: bytes,
    said: str,
) -> None:
    here = texts_here if name == "texts" else pictures_here
    good = [t.encode() for t in TEXTS] if name == "texts" else [jpeg(seed) for seed in range(3)]
    asked = [elements(good[i % 3], bad if i in {2, 5} else good[(i + 1) % 3]) for i in range(8)]

    answers = _at_once(served, name, asked)

    for i, (rows, answer) in enumerate(zip(asked, answers, strict=True)):
        if i in {2, 5}:
            assert isinstance(answer, str)
            assert said in answer
        else:
            assert not isinstance(answer, str), answer
            assert_same(answer, here.run({_INPUT[name]: rows}))
    url = f"{served.where().http_url}/v2/models/{name}/stats"
    batches = served.call("GET", url)[1]["model_stats"][0]["batch_stats"]
    assert max(int(one["batch_size"]) for one in batches) > 2, "no two callers shared a batch"


@pytest.mark.long
def test_a_function_is_served_only_where_its_code_is_allowed(
    system: System, tmp_path: Path
) -> None:
    path = code_pipeline(tmp_path)
    entry = {"name": "double", "model": str(path)}
    plain = {"name": "m", "model": str(path.parent / "mlp.onnx")}
    (path.parent / "mlp.onnx").write_bytes(models.mlp())
    system.start(plain, allow_code=False)
    system.wait_ready()

    refused = system.manage("PUT", "/api/v1/endpoints/double", entry)
    allowed = system.manage("PUT", "/api/v1/endpoints/double", entry | {"allow_code": True})
    system.wait_for(lambda status: len(status["endpoints"]) == 2 and status["ready"])

    assert refused[0] >= 400
    assert "runs its author's code" in json.dumps(refused[1])
    assert allowed[0] == 201, allowed
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]}
    answer = post(system, "/v2/models/double/infer", {"inputs": [tensor]})
    assert answer[1]["outputs"][0]["data"] == [2, 5]


def _push(home: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HEADRACE, "models", "push", *arguments, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "HEADRACE_HOME": str(home), "NO_COLOR": "1"},
        timeout=120,
        check=False,
    )


@pytest.mark.long
def test_a_push_says_that_it_is_a_pipeline(folder: Path, tmp_path: Path) -> None:
    path = code_pipeline(tmp_path)
    home = tmp_path / "home"

    texts = _push(home, "texts", folder / "texts")
    refused = _push(home, "double", path)
    allowed = _push(home, "double", path, "--allow-code")

    assert texts.returncode == 0, texts.stderr
    found = json.loads(texts.stdout)
    assert found["runtime"] == "pipeline"
    assert [one["name"] for one in found["signature"]["outputs"]] == ["label", "score"]
    assert refused.returncode == 1
    assert "runs its author's code" in refused.stderr
    assert json.loads(allowed.stdout)["runtime"] == "pipeline"
