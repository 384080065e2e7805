"""TorchScript: where its signature comes from, what it may keep, what is refused and why."""

import json
import logging
import os
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from headrace.core import (
    CodeNotAllowedError,
    Datatype,
    InvalidArgumentError,
    RowIndependence,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, Model, detect_runtime, inspect_model, load_model
from headrace.testing import models
from tests.torch_models import (
    FEATURES,
    PERCEPTRONS,
    ROWS,
    SIGNATURE,
    SILERO,
    Saved,
    answered,
    example,
    nn,
    no_warnings,
    script,
    silero,
    torch,
    trace,
    trained,
)

pytestmark = [pytest.mark.torch, pytest.mark.slow]

CPU = LoadOptions(device="cpu")


class Pair(NamedTuple):
    mean: torch.Tensor
    most: torch.Tensor


class Double(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Scaled(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: torch.Tensor, scale: float, add: int = 1) -> torch.Tensor:
        return x * scale + add


class Nested(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Pair, list[torch.Tensor], int]:
        return x, Pair(x.mean(1), x.amax(1)), [x, x.to(torch.bfloat16)], 7


class Remembers(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.sum())
        return x + self.total


class RemembersInDict(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = {"total": torch.zeros(1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept["total"].add_(x.sum())
        return x + self.kept["total"]


class Draws(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return torch.rand_like(x)


class Refuses(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            raise ValueError("only what is positive")  # scripted
        return x.sqrt()


class Lists(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        return x[0]


class Words(nn.Module):  # type: ignore[misc]  # as above
    def forward(self, x: torch.Tensor) -> str:
        return str(x.size(0))


class Writes(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x


def opened(saved: Saved) -> Model:
    return load_model(saved.path, "torchscript", CPU)


def rows(count: int = 2) -> Any:
    return ROWS[:count].copy()


def in_directory(saved: Saved, signature: object) -> Path:
    """`saved` with a signature beside it."""
    folder = saved.path.with_name("model")
    folder.mkdir()
    saved.path.rename(folder / saved.path.name)
    (folder / "signature.json").write_text(json.dumps(signature))
    return folder


def rewritten(saved: Saved, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive, with records changed or left out."""
    path = saved.path.with_name("changed.pt")
    with zipfile.ZipFile(saved.path) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = change(entry.filename.partition("/")[2], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
    return path


@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_a_trained_module_answers_as_it_does_in_process(tmp_path: Path, kind: str) -> None:
    saved = PERCEPTRONS[kind](tmp_path)
    model = load_model(saved.path, "", replace(CPU, rows_independent=True))

    (answer,) = model.run({"x": ROWS}).values()
    want = answered(saved.module, ROWS)

    assert model.signature.batched
    undeclared = load_model(saved.path, "", CPU).signature
    assert undeclared.row_independence is RowIndependence.PROVEN, undeclared.row_reason
    assert undeclared.batched
    assert model.concurrent
    assert answer.shape == want.shape == (len(ROWS), 3)
    # The same kernels on the same rows; fusions of scripted code may round otherwise.
    assert np.abs(answer - want).max() <= 1e-6
    assert np.abs(want - 1 / 3).max() > 0.5, "it was trained"


def test_a_traced_module_says_itself_what_it_takes(tmp_path: Path) -> None:
    saved = trace(tmp_path / "m.pt", Double(), torch.ones(2, 3, 4, dtype=torch.float16))

    (spec,) = opened(saved).signature.inputs

    assert (spec.name, spec.datatype, spec.shape) == ("x", Datatype.FP16, (-1, 3, 4))


def test_a_trace_that_holds_for_its_example_only_keeps_the_shape(tmp_path: Path) -> None:
    class Fixed(nn.Module):  # type: ignore[misc]  # as above
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 5) + torch.arange(2).reshape(2, 1)

    model = opened(trace(tmp_path / "m.pt", Fixed(), example()))

    assert model.signature.inputs[0].shape == (2, FEATURES)
    assert not model.signature.batched


def test_what_a_scripted_module_does_not_say_is_asked_for(tmp_path: Path) -> None:
    saved = script(tmp_path / "m.pt", Double())

    with pytest.raises(UnsupportedModelError) as caught:
        opened(saved)
    message = str(caught.value)
    text = message[message.index('{"inputs"') : message.rindex("}") + 1]

    assert "signature.json beside the file" in message
    assert '_extra_files={"signature.json": TEXT}' in message
    folder = in_directory(saved, json.loads(text))
    assert load_model(folder, "", CPU).signature.inputs[0].shape == (-1, 4)


def test_a_signature_beside_the_file_comes_before_the_one_in_it(tmp_path: Path) -> None:
    saved = script(tmp_path / "m.pt", Double(), SIGNATURE)
    folder = in_directory(
        saved, {"inputs": [{"name": "x", "datatype": "INT32", "shape": [-1]}], "batched": False}
    )

    signature = load_model(folder, "", CPU).signature

    assert signature.inputs[0].datatype is Datatype.INT32
    assert not signature.batched


def test_tensors_may_be_renamed(tmp_path: Path) -> None:
    declared = {
        "inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "doubled", "datatype": "FP32", "shape": [-1, 2]}],
    }
    model = opened(script(tmp_path / "m.pt", Double(), declared))

    answer = model.run({"INPUT__0": np.ones((1, 2), np.float32)})

    assert answer["doubled"].tolist() == [[2.0, 2.0]]


def test_numbers_come_from_requests_or_are_always_the_same(tmp_path: Path) -> None:
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [-1]},
        {"name": "scale", "datatype": "FP64", "shape": []},
    ]
    asked = opened(script(tmp_path / "a.pt", Scaled(), {"inputs": inputs}))
    fixed = opened(
        script(tmp_path / "b.pt", Scaled(), {"inputs": inputs[:1], "values": {"scale": 3.0}})
    )
    x = np.ones(1, np.float32)

    assert asked.run({"x": x, "scale": np.asarray(5.0)})["output"].tolist() == [6.0]
    assert fixed.run({"x": x})["output"].tolist() == [4.0]


def test_outputs_are_named_by_where_they_stand(tmp_path: Path) -> None:
    model = opened(script(tmp_path / "m.pt", Nested(), SIGNATURE))

    answers = model.run({"x": rows()})

    names = ["output_0", "output_1_mean", "output_1_most", "output_2_0", "output_2_1", "output_3"]
    assert list(answers) == names
    assert answers["output_2_1"].dtype == np.float32, "the protocol has no bfloat16"
    assert answers["output_3"].shape == ()
    assert np.array_equal(answers["output_1_most"], rows().max(1))


@pytest.mark.parametrize("module", [Remembers, RemembersInDict])
def test_a_module_that_mixes_callers_answers_is_refused(tmp_path: Path, module: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="parts of each other's results"):
        opened(script(tmp_path / "m.pt", module(), SIGNATURE))


def test_a_module_that_draws_at_random_is_served_one_run_at_a_time(tmp_path: Path) -> None:
    model = opened(script(tmp_path / "m.pt", Draws(), SIGNATURE))
    first, second = (model.run({"x": rows()})["output"] for _ in range(2))

    assert not model.concurrent
    assert not np.array_equal(first, second)


def test_published_speech_detection_answers_as_in_process(tmp_path: Path) -> None:
    folder = tmp_path / "silero"
    folder.mkdir()
    (folder / "model.jit").write_bytes(silero().read_bytes())
    (folder / "signature.json").write_text(SILERO)
    with no_warnings():
        own = torch.jit.load(str(silero())).eval()
    noise = np.random.default_rng(2).normal(size=(3, 4000)).astype(np.float32) / 10

    model = load_model(folder, "", CPU)
    answer = model.run({"audio": noise})["speech"]
    with torch.inference_mode():
        want = own.audio_forward(torch.from_numpy(noise), 16000).numpy()

    assert model.signature.batched
    assert answer.shape == (3, 8)
    assert np.abs(answer - want).max() <= 1e-6


def test_published_speech_detection_is_refused_where_it_remembers(tmp_path: Path) -> None:
    declared = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 512]}],
        "values": {"sr": 16000},
    }
    copy = tmp_path / "model.jit"
    copy.write_bytes(silero().read_bytes())

    with pytest.raises(UnsupportedModelError, match="name a method that resets it"):
        load_model(in_directory(Saved(copy, None), declared), "", CPU)


def test_what_a_module_refuses_is_the_callers_to_know(tmp_path: Path) -> None:
    model = opened(script(tmp_path / "m.pt", Refuses(), SIGNATURE))

    with pytest.raises(InvalidArgumentError, match="rejects it: only what is positive"):
        model.run({"x": -np.ones((1, FEATURES), np.float32)})


def test_what_goes_wrong_inside_is_one_line(tmp_path: Path) -> None:
    saved = script(tmp_path / "m.pt", trained(), SIGNATURE)
    model = opened(saved)

    with pytest.raises(RuntimeFailedError) as caught:
        model.run({"x": np.ones((1, 2), np.float32)})

    assert "\n" not in str(caught.value)
    assert "mat1 and mat2 shapes cannot be multiplied (1x2 and 5x16)" in str(caught.value)


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    model = opened(script(tmp_path / "m.pt", Double(), SIGNATURE))
    model.close()

    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"x": rows()})


def test_models_keep_to_their_own_number_of_threads(tmp_path: Path) -> None:
    path = script(tmp_path / "m.pt", Double(), SIGNATURE).path
    one, two = (load_model(path, "", LoadOptions(device="cpu", intra_op_threads=n)) for n in (1, 2))
    seen = []

    def alternate() -> None:
        for model in (one, two, one):
            model.run({"x": rows()})
            seen.append(torch.get_num_threads())

    threads = [threading.Thread(target=alternate) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()

    assert seen == [1, 2, 1, 1, 2, 1]


def test_runs_keep_no_gradients(tmp_path: Path) -> None:
    class Asks(nn.Module):  # type: ignore[misc]  # as above
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
            return x, torch.is_grad_enabled()

    model = opened(script(tmp_path / "m.pt", Asks(), SIGNATURE))

    assert not model.run({"x": rows()})["output_1"]
    assert torch.is_grad_enabled(), "for others nothing has changed"


def test_a_device_that_is_not_there_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = script(tmp_path / "m.pt", Double(), SIGNATURE).path
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")

    with caplog.at_level(logging.WARNING):
        model = load_model(path, "", LoadOptions(device="cuda"))

    assert "PyTorch finds no CUDA device" in caplog.text
    assert model.run({"x": rows()})
    with pytest.raises(UnsupportedModelError, match="unknown device 'tpu'; use one of auto"):
        load_model(path, "", LoadOptions(device="tpu"))


DECLARED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown argument": (
        Scaled,
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}], "values": {"sc": 1.0}},
        "'values' names 'sc', but the module has x, scale, add",
    ),
    "missing argument": (
        Scaled,
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}]},
        r"its argument 'scale' \(float\) is not declared; declare it in 'inputs', or set it",
    ),
    "a number as a tensor": (
        Scaled,
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [-1]},
                {"name": "scale", "datatype": "FP32", "shape": [-1]},
            ]
        },
        """must be declared with "datatype": "FP64", "shape": \\[\\]""",
    ),
    "too many": (
        Double,
        {"inputs": [{"name": n, "datatype": "FP32", "shape": [-1]} for n in "ab"]},
        "'a' is declared, but the module has 'x'",
    ),
    "a list": (
        Lists,
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}]},
        r"argument 'x' is a List\[Tensor\]; a request cannot carry it: save a module that",
    ),
    "an output that is text": (
        Words,
        SIGNATURE,
        "does not run .*: the model returns a str; it must",
    ),
    "a wrong shape": (
        trained,
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 7]}]},
        "does not run on generated inputs.*mat1 and mat2 shapes.*check the declared shapes",
    ),
    "a wrong output": (
        Double,
        {**SIGNATURE, "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}]},
        "declares output 'y' as INT64, but returns FP32",
    ),
    "a batch that is none": (
        Double,
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3]}], "batched": True},
        "'batched' is declared, but axis 0 of input 'x' has a fixed size",
    ),
    "no such method": (Double, {**SIGNATURE, "method": "go"}, "has no method 'go'; it has forward"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_signature_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, case: str
) -> None:
    make, declared, reason = DECLARED[case]
    saved = script(tmp_path / "m.pt", make(), declared)

    with pytest.raises(UnsupportedModelError, match=reason):
        opened(saved)


def _without(name: str) -> Callable[[str, bytes], bytes | None]:
    return lambda record, data: None if record == name else data


def _short(name: str) -> Callable[[str, bytes], bytes | None]:
    return lambda record, data: data[:4] if record == name else data


def _huge(record: str, data: bytes) -> bytes:
    # A matrix of 16 rows and 5 columns says that it has 16,777,215 rows.
    return data.replace(b"K\x10K\x05", b"J\xff\xff\xff\x00K\x05") if record == "data.pkl" else data


DAMAGES: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "no weights": (_without("data/1"), "'data/1' has 0 of the"),
    "short weights": (_short("data/1"), "'data/1' has 4 of the"),
    "short pickle": (_short("data.pkl"), "is truncated or corrupt: 'data.pkl'"),
    "absurd shape": (_huge, "PyTorch cannot load it: .*require a storage of at least"),
    "no code": (
        lambda record, data: b"def forward(" if record.endswith(".py") else data,
        "PyTorch cannot load it",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, damage: str) -> None:
    change, reason = DAMAGES[damage]
    path = rewritten(script(tmp_path / "m.pt", trained(), SIGNATURE), change)

    with pytest.raises(UnsupportedModelError, match=f"changed.pt: .*{reason}"):
        load_model(path, "torchscript", CPU)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    saved = script(tmp_path / "m.pt", Double(), SIGNATURE)
    with zipfile.ZipFile(saved.path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data/9", bytes(80 << 20))

    with pytest.raises(UnsupportedModelError, match="would unpack to"):
        opened(saved)


def test_a_checkpoint_is_a_pickle_and_no_model(tmp_path: Path) -> None:
    whole, weights = tmp_path / "whole.pt", tmp_path / "weights.pth"
    torch.save(trained(), whole)
    torch.save(trained().state_dict(), weights)

    for path, runtime in ((whole, ""), (weights, ""), (whole, "torchscript")):
        with pytest.raises(
            UnsupportedModelError,
            match=r"a PyTorch archive with a pickle.*; .* or "
            r"save it with torch\.export\.save or torch\.jit\.save",
        ):
            inspect_model(path, runtime, allow_code=True)


def test_code_has_to_be_allowed_because_it_can_write_files(tmp_path: Path) -> None:
    """The reason that `runs_code` is True: operators of TorchScript write and read any file."""
    target = tmp_path / "written-by-the-model"
    saved = script(tmp_path / "m.pt", Writes(str(target)), SIGNATURE)

    with pytest.raises(CodeNotAllowedError):
        inspect_model(saved.path)
    assert not target.exists()
    inspect_model(saved.path, allow_code=True)
    assert target.exists()


def test_other_files_beside_it_belong_to_the_model(tmp_path: Path) -> None:
    folder = in_directory(script(tmp_path / "m.pt", Double()), SIGNATURE)
    (folder / "README").write_text("who made it")

    assert detect_runtime(folder).name == "torchscript"
    (folder / "second.pt").write_bytes((folder / "m.pt").read_bytes())
    with pytest.raises(
        UnsupportedModelError, match=r"must hold exactly one file that torch\.jit\.save"
    ):
        load_model(folder, "torchscript", CPU)
    (folder / "second.pt").unlink()
    (folder / "model.py").write_text(models.python_double())
    assert detect_runtime(folder).name == "python"


def test_a_fork_may_load_what_the_parent_has_loaded(tmp_path: Path) -> None:
    """The nursery forks, and so may whoever embeds this."""
    path = script(tmp_path / "m.pt", trained(), SIGNATURE).path
    load_model(path, "", CPU).run({"x": rows()})

    pid = os.fork()
    if pid == 0:
        model = load_model(path, "", LoadOptions(device="cpu", intra_op_threads=1))
        os._exit(0 if model.run({"x": rows()})["output"].shape == (2, 3) else 1)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0


class OnlyLarge(nn.Module):  # type: ignore[misc]  # as above
    """Does not run on what is made up for it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if bool((x < 100).any()):
            raise ValueError("small")  # scripted
        if bool((x > 200).any()):
            return x, x.to(torch.int64)
        return x, x + 1


def test_what_runs_on_no_made_up_input_is_believed_and_then_checked(tmp_path: Path) -> None:
    outputs = [{"name": n, "datatype": "FP32", "shape": [-1, FEATURES]} for n in ("same", "more")]
    silent = script(tmp_path / "a.pt", OnlyLarge(), SIGNATURE)
    model = opened(script(tmp_path / "b.pt", OnlyLarge(), {**SIGNATURE, "outputs": outputs}))
    x = np.full((2, FEATURES), 150, np.float32)

    assert model.run({"x": x})["more"][0, 0] == 151
    assert list(model.run({"x": x}, ["more"])) == ["more"]
    with pytest.raises(RuntimeFailedError, match="returned 'more' as int64 with shape"):
        model.run({"x": x + 100})
    with pytest.raises(UnsupportedModelError, match=r"rejects it: small; check .* its outputs too"):
        opened(silent)


def test_a_model_from_tritons_layout_brings_its_configuration(tmp_path: Path) -> None:
    version = tmp_path / "net" / "1"
    version.mkdir(parents=True)
    script(version / "model.pt", trained())
    (tmp_path / "net" / "config.pbtxt").write_text(
        f"""
        platform: "pytorch_libtorch"
        max_batch_size: 8
        input [ {{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ {FEATURES} ] }} ]
        output [ {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 3 ] }} ]
        """
    )

    model = load_model(version / "model.pt", "", CPU)
    answer = model.run({"INPUT__0": rows()})["OUTPUT__0"]

    assert model.signature.batched
    assert np.abs(answer - answered(trained(), rows())).max() <= 1e-6
