"""Small optimized models, as the optimizer writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.core import Tensors, example_inputs
from headrace.optimize.artifact import write_artifact
from headrace.optimize.candidate import Candidate
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.base import UNTUNED, Tuning
from headrace.runtimes.optimized.file import OtherProcessor, Processor
from headrace.runtimes.optimized.processor import this_processor
from headrace.testing import models

ELSEWHERE = Processor(name="Some Other Processor", features=("avx2", "avx512_vnni", "amx_int9"))


def asked(path: Path, runtime: str, count: int = 4) -> list[tuple[Tensors, Tensors]]:
    """Requests of one to three rows, with what a model answers."""
    model = load_model(path, runtime, LoadOptions(device="cpu"))
    requests = [
        example_inputs(model.signature, rows=1 + seed % 3, variable=5, seed=seed)
        for seed in range(count)
    ]
    found = [(request, model.run(request)) for request in requests]
    model.close()
    return found


def onnx_source(folder: Path, name: str = "mlp") -> Path:
    """A model to be optimized."""
    folder.mkdir(parents=True, exist_ok=True)
    (path,) = models.write(folder, name)
    return path


def write(
    folder: Path,
    *,
    runtimes: Sequence[str] = ("onnx",),
    bounds: Sequence[int | None] = (None,),
    tuning: Tuning = UNTUNED,
    processor: Processor | None = None,
    policy: OtherProcessor = OtherProcessor.VERIFY,
    model: str = "mlp",
) -> Path:
    """An artifact in `folder / "optimized"` whose members run the same file by these runtimes."""
    source = onnx_source(folder / "source", model)
    members = [
        (
            Candidate(
                name=f"{runtime}-{i}",
                title="",
                runtime=runtime,
                path=source,
                tuning=tuning,
                recipe={"what": "nothing"},
            ),
            bound,
        )
        for i, (runtime, bound) in enumerate(zip(runtimes, bounds, strict=True))
    ]
    return write_artifact(
        folder / "optimized",
        members,
        processor=processor or this_processor(),
        policy=policy,
        check=asked(source, "onnx"),
        source_digest="sha256:" + "ab" * 32,
        figures={"p50_s": 0.001, "cut_ratio": 0.6},
    )


def changed(directory: Path, **values: Any) -> Path:  # noqa: ANN401  # JSON
    """The artifact with other values at the top of its manifest; None takes one away."""
    file = directory / "optimized.json"
    document = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in document.items() if value != ...}))
    return directory
