"""Made-up examples run, differ from each other, and are the same every time."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.core import UnsupportedModelError
from headrace.optimize.accuracy import generated_examples
from headrace.optimize.accuracy.inference import answers
from headrace.runtimes import LoadOptions, Model
from headrace.runtimes.onnx.runtime import OnnxRuntime
from headrace.testing import models


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[bytes], Model]]:
    opened: list[Model] = []

    def put(content: bytes) -> Model:
        path = tmp_path / f"{len(opened)}.onnx"
        path.write_bytes(content)
        opened.append(OnnxRuntime().load(path, LoadOptions()))
        return opened[-1]

    yield put
    for model in opened:
        model.close()


@pytest.mark.parametrize(
    "content",
    [models.mlp(), models.two_outputs(), models.image(), models.unbatched(), models.strings()],
    ids=["mlp", "two", "image", "unbatched", "strings"],
)
def test_every_kind_of_model_runs_on_them(load: Callable[[bytes], Model], content: bytes) -> None:
    model = load(content)

    found = generated_examples(model, model.signature, 20, seed=1)

    assert len(found) == 20
    assert found.labels is None
    assert answers(model.run, found).failures == {}
    assert found.sha256() == generated_examples(model, model.signature, 20, seed=1).sha256()
    assert found.notes == ("generated inputs, because no data was given",)


def test_models_of_tokens_are_asked_words_of_their_vocabulary(
    load: Callable[[bytes], Model],
) -> None:
    model = load(models.encoder(vocabulary=150))

    found = generated_examples(model, model.signature, 40, seed=0)

    ids = np.concatenate([one["input_ids"][0] for one in found.inputs])
    assert 90 <= int(ids.max()) < 100
    assert len({one["input_ids"].shape for one in found.inputs}) > 10
    assert all((one["attention_mask"] == 1).all() for one in found.inputs)
    assert answers(model.run, found).failures == {}


def test_another_seed_makes_other_examples(load: Callable[[bytes], Model]) -> None:
    model = load(models.mlp())

    one, other = (generated_examples(model, model.signature, 5, seed=s) for s in (0, 1))

    assert one.sha256() != other.sha256()


def test_a_model_that_never_runs_is_told(load: Callable[[bytes], Model]) -> None:
    model = load(models.two_lengths())

    with pytest.raises(UnsupportedModelError):
        generated_examples(Broken(model), model.signature, 3, seed=0)


class Broken:
    """A model that fails on everything."""

    concurrent = True

    def __init__(self, model: Model) -> None:
        self.signature = model.signature

    def run(self, inputs: object, outputs: object = None) -> dict[str, np.ndarray]:
        raise UnsupportedModelError(f"never: {type(inputs)} {outputs}")

    def close(self) -> None:
        pass
