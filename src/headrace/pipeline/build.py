"""From what `pipeline.yaml` says to steps that run: each opened, and wired to those before it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.core import (
    Datatype,
    FailedPreconditionError,
    HeadraceError,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.pipeline.function import open_function
from headrace.pipeline.given import check_service, open_features
from headrace.pipeline.lengths import ByLength
from headrace.pipeline.pipeline import Pipeline, Step
from headrace.pipeline.pooling import MASK, VECTORS, PoolStep
from headrace.pipeline.spec import (
    AnyStepSpec,
    FeaturesStepSpec,
    FunctionSpec,
    ModelStepSpec,
    PipelineSpec,
    PoolSpec,
    TokenizerSpec,
    read_spec,
)
from headrace.pipeline.tokenizing import TokenizerStep
from headrace.runtimes import LoadOptions, Model, detect_runtime, get_runtime, runs_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a step is opened with: where its files lie, how to load, what is known before it.

    `known`: the tensors that earlier steps give, by the pipeline's names.
    """

    directory: Path
    options: LoadOptions
    known: Mapping[str, TensorSpec]


def load_pipeline(directory: Path | str, options: LoadOptions | None = None) -> Pipeline:
    """The pipeline in a directory with `pipeline.yaml`, ready to run; the caller closes it.

    The one to train with, too: what it does to data is what serving does. Steps of Python run
    their author's code.

    Raises:
        UnsupportedModelError: It cannot be loaded; the message names the step and the reason.
        FailedPreconditionError: A library is missing; the message says what to install.
    """
    directory = Path(directory)
    spec = read_spec(directory)
    with ExitStack() as opened:
        steps: list[Step] = []
        known: dict[str, TensorSpec] = {}
        for place, one in named_steps(spec):
            around = Surroundings(
                directory=directory, options=options or LoadOptions(), known=known
            )
            try:
                model = _open(one, place, around)
            except (UnsupportedModelError, FailedPreconditionError) as error:
                raise type(error)(f"{directory.name}: step '{place}': {error}") from error
            opened.callback(model.close)
            step = _wired(one, place, model)
            known |= {
                step.writes[spec.name]: replace(spec, name=step.writes[spec.name])
                for spec in model.signature.outputs
            }
            steps.append(step)
        pipeline = Pipeline(steps, spec.outputs)
        opened.pop_all()
    return pipeline


def named_steps(spec: PipelineSpec) -> Iterator[tuple[str, AnyStepSpec]]:
    """Each step with a name of its own: the one it was given, else its kind, counted."""
    taken: set[str] = set()
    for one in spec.steps:
        base = one.name or one.kind
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        yield name, one


def code_steps(directory: Path) -> Iterator[str]:
    """What in a pipeline runs code of its author's: functions, and models of such formats."""
    for name, one in named_steps(read_spec(directory)):
        if isinstance(one, FunctionSpec):
            yield f"step '{name}' ({one.function})"
        elif isinstance(one, ModelStepSpec):
            path = file_in(directory, one.path)
            runtime = get_runtime(one.runtime) if one.runtime else detect_runtime(path)
            if runs_code(runtime, path):
                yield f"step '{name}' (runtime '{runtime.name}')"


def check_features(directory: Path, service: str, columns: Sequence[TensorSpec]) -> bool:
    """Whether a pipeline takes features itself; compares them with what `service` gives.

    Raises:
        UnsupportedModelError: It was made with other ones.
    """
    steps = [one for one in read_spec(directory).steps if isinstance(one, FeaturesStepSpec)]
    for one in steps:
        check_service(one, service, columns)
    return bool(steps)


def file_in(directory: Path, name: str) -> Path:
    """What a step names, which has to lie in the pipeline's directory.

    Raises:
        UnsupportedModelError: It lies elsewhere, or there is none.
    """
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()) or Path(name).is_absolute():
        msg = f"'{name}' does not lie in the pipeline's directory, which is all that is pushed"
        raise UnsupportedModelError(msg)
    if not path.exists():
        raise UnsupportedModelError(f"there is no '{name}' beside pipeline.yaml")
    return path


def _open(spec: AnyStepSpec, place: str, around: Surroundings) -> Model:
    match spec:
        case FunctionSpec():
            file = file_in(around.directory, spec.function.rpartition(":")[0])
            return open_function(spec, file, place)
        case TokenizerSpec():
            return TokenizerStep.open(
                file_in(around.directory, spec.file),
                max_length=spec.max_length,
                datatype=Datatype(spec.datatype),
            )
        case ModelStepSpec():
            return _open_model(spec, around)
        case PoolSpec():
            return _open_pool(spec, around)
        case FeaturesStepSpec():
            return open_features(spec, around.options.features)


def _open_model(spec: ModelStepSpec, around: Surroundings) -> Model:
    path = file_in(around.directory, spec.path)
    if path.resolve() == around.directory.resolve():
        raise UnsupportedModelError("a pipeline cannot be a step of itself")
    runtime = get_runtime(spec.runtime) if spec.runtime else detect_runtime(path)
    model = runtime.load(path, around.options)
    try:
        return ByLength.around(model)
    except HeadraceError:
        model.close()
        raise


def _open_pool(spec: PoolSpec, around: Surroundings) -> Model:
    vectors = _known(spec, around, VECTORS)
    mask = _known(spec, around, MASK)
    return PoolStep(
        spec.mode,
        normalize=spec.normalize,
        mask=mask.datatype,
        size=vectors.shape[-1] if vectors.shape else -1,
    )


def _known(spec: AnyStepSpec, around: Surroundings, own: str) -> TensorSpec:
    """The tensor that a step reads under a name of its own, where its kind depends on it."""
    name = spec.inputs.get(own, own) if not isinstance(spec, FunctionSpec) else own
    there = around.known.get(name)
    if there is None:
        msg = f"no earlier step gives '{name}'; there are: {', '.join(around.known) or 'none'}"
        raise UnsupportedModelError(f"{msg}; map it, as in inputs: {{{own}: NAME}}")
    return there


def _wired(spec: AnyStepSpec, place: str, model: Model) -> Step:
    """The step with its own names mapped to the pipeline's."""
    signature = model.signature
    reads = {one.name: one.name for one in signature.inputs}
    writes = {one.name: one.name for one in signature.outputs}
    if not isinstance(spec, FunctionSpec):
        reads = _mapped(place, "inputs", reads, spec.inputs)
        writes = _mapped(place, "outputs", writes, spec.outputs)
    return Step(name=place, model=model, reads=reads, writes=writes)


def _mapped(place: str, what: str, own: dict[str, str], given: Mapping[str, str]) -> dict[str, str]:
    unknown = [name for name in given if name not in own]
    if unknown:
        msg = (
            f"step '{place}': {what} maps '{unknown[0]}', which it does not have; "
            f"it has: {', '.join(own)}"
        )
        raise UnsupportedModelError(msg)
    mapped = {**own, **given}
    if len(set(mapped.values())) < len(mapped) and what == "outputs":
        raise UnsupportedModelError(f"step '{place}': two outputs are called the same")
    return mapped
