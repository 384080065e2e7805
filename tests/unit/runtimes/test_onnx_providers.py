"""What is tried is decided by what there is; what may be missing, by what was asked for."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import FailedPreconditionError
from headrace.core.devices import Device
from headrace.runtimes.onnx.providers import (
    CPU,
    CUDA,
    OPENVINO,
    TENSORRT,
    check_used,
    lacks_gpu,
    plan,
    short,
    why_not_started,
)

ALL = [TENSORRT, CUDA, OPENVINO, "DnnlExecutionProvider", "AzureExecutionProvider", CPU]


@pytest.mark.parametrize(
    ("device", "tried"),
    [
        ("auto", (TENSORRT, CUDA, OPENVINO)),
        ("cpu", ()),
        ("gpu", (TENSORRT, CUDA)),
        ("cuda", (CUDA,)),
        ("tensorrt", (TENSORRT, CUDA)),
        ("openvino", (OPENVINO,)),
    ],
)
def test_what_is_tried_for_each_device(device: str, tried: tuple[str, ...]) -> None:
    planned = plan(device, ALL)

    assert planned.tried == tried
    assert planned.unused["Dnnl"] == "it is used only on request"
    for name in {TENSORRT, CUDA, OPENVINO} - set(tried):
        assert planned.unused[short(name)] == f"device '{device}' was requested"


@given(st.sampled_from(Device), st.lists(st.sampled_from(ALL), unique=True))
def test_every_provider_that_is_here_is_tried_or_said_not_to_be(
    device: Device, others: list[str]
) -> None:
    available = [*others, CPU] if CPU not in others else others
    needed = {
        Device.GPU: {TENSORRT, CUDA},
        Device.CUDA: {CUDA},
        Device.TENSORRT: {TENSORRT},
        Device.OPENVINO: {OPENVINO},
    }.get(device)
    if needed is not None and not needed & set(available):
        with pytest.raises(FailedPreconditionError, match="install onnxruntime-"):
            plan(device, available)
        return
    planned = plan(device, available)

    told = {*map(short, planned.tried), *planned.unused, "CPU"}
    assert told == set(map(short, available))


@pytest.mark.parametrize(
    ("device", "used"),
    [
        ("auto", [CPU]),
        ("cpu", [CPU]),
        ("gpu", [CUDA, CPU]),
        ("gpu", [TENSORRT, CUDA, CPU]),
        ("tensorrt", [TENSORRT, CUDA, CPU]),
        ("openvino", [OPENVINO, CPU]),
    ],
)
def test_what_was_asked_for_and_runs_is_right(device: str, used: list[str]) -> None:
    check_used(device, used, {})


@pytest.mark.parametrize(
    ("device", "used"),
    [
        ("gpu", [CPU]),
        ("cuda", [OPENVINO, CPU]),
        ("tensorrt", [CUDA, CPU]),
        ("openvino", [CPU]),
    ],
)
def test_something_else_in_its_place_is_refused(device: str, used: list[str]) -> None:
    with pytest.raises(
        FailedPreconditionError, match=rf"'{device}' was requested.*CUDA: no driver"
    ):
        check_used(device, used, {CUDA: "no driver"})


def test_why_a_provider_was_left_out_is_found_in_its_library(tmp_path: Path) -> None:
    library = tmp_path / "libonnxruntime_providers_cuda.so"
    (tmp_path / "nvidia0").touch()
    assert why_not_started(CUDA, tmp_path, tmp_path) == "ONNX Runtime did not start it"
    library.write_bytes(b"no library")

    told = why_not_started(CUDA, tmp_path, tmp_path)

    assert told.startswith("its library cannot be loaded: ")
    assert re.search("invalid ELF header|file too short", told)


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
@pytest.mark.parametrize("files", [[], ["nvidiactl", "nvidia-uvm", "null"]])
def test_without_a_gpu_it_is_said_how_a_container_gets_one(
    provider: str, files: list[str], tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()

    told = why_not_started(provider, tmp_path, tmp_path)

    assert told.startswith("no GPU is visible")
    assert "--gpus all" in told


def test_a_gpu_is_certainly_not_there_without_its_files_and_its_driver(tmp_path: Path) -> None:
    somewhere, nowhere = "libc.so.6", str(tmp_path / "libcuda.so.1")
    assert lacks_gpu(tmp_path, nowhere)
    assert not lacks_gpu(tmp_path, somewhere)
    (tmp_path / "nvidia3").touch()
    assert not lacks_gpu(tmp_path, nowhere)


@pytest.mark.parametrize("file", ["nvidia0", "nvidia12", "dxg", "nvmap"])
def test_a_gpu_that_is_there_is_not_called_absent(file: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()

    assert "no GPU is visible" not in why_not_started(CUDA, tmp_path, tmp_path)
    assert "GPU" not in why_not_started(OPENVINO, tmp_path, tmp_path / "none")
