"""Construction of a pipeline from `pipeline.yaml`: opens and connects the steps in order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import assert_never, cast

from headrace.core import (
    VARIABLE,
    Datatype,
    FailedPreconditionError,
    ModelSignature,
    RowIndependence,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.pipeline.classify import open_classify, open_pool
from headrace.pipeline.context import StepContext, code_of
from headrace.pipeline.entities import open_entities
from headrace.pipeline.feature_step import check_service, open_features
from headrace.pipeline.images import open_image
from headrace.pipeline.members import open_cascade, open_ensemble
from headrace.pipeline.pipeline import Pipeline, PipelineStep
from headrace.pipeline.spec import (
    AnyStepSpec,
    CascadeSpec,
    ClassifySpec,
    EnsembleSpec,
    EntitiesSpec,
    FeaturesStepSpec,
    FunctionSpec,
    ImageSpec,
    ModelStepSpec,
    PipelineSpec,
    PoolingSpec,
    TokenizerSpec,
    VectorizerSpec,
    read_spec,
    tensor_specs,
)
from headrace.pipeline.tokenize import TokenizerStep
from headrace.pipeline.vectorize import open_vectorizer
from headrace.runtimes import LoadOptions, Model
from headrace.runtimes.python import TensorDeclaration, UserModel, forget, run_file

Function = Callable[[Tensors], Tensors]


class _Infer:
    """Adapter of a function to a model class's interface. Functions on arrays need no lock."""

    concurrent = True

    def __init__(self, function: Function, signature: ModelSignature) -> None:
        self.inputs: Mapping[str, TensorDeclaration] = _declared(signature.inputs)
        self.outputs: Mapping[str, TensorDeclaration] = _declared(signature.outputs)
        self._function = function

    def infer(self, inputs: Tensors) -> Tensors:
        """Call the function; it may change its dict, but not the pipeline's."""
        return self._function(dict(inputs))


def open_function(spec: FunctionSpec, file: Path, step_name: str) -> Model:
    """Return the function that `spec` names in `file`. Runs the file's code.

    Its outputs are checked against the declaration.

    Raises:
        UnsupportedModelError: The function does not exist, or the declaration is invalid.
    """
    inputs, outputs = tensor_specs(spec.inputs), tensor_specs(spec.outputs)
    for tensor in (*inputs, *outputs):
        if not tensor.shape or tensor.shape[0] != VARIABLE:
            msg = (
                f"{step_name}: axis 0 of '{tensor.name}' is the batch axis and must be -1; "
                f"it is declared as {list(tensor.shape)}"
            )
            raise UnsupportedModelError(msg)
    signature = ModelSignature(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batched=True,
        row_independence=RowIndependence.DECLARED,
        row_reason=f"{step_name} declares a batch axis",
    )
    try:
        function = _read(file, spec.function.rpartition(":")[2])
    except BaseException:
        forget(file)
        raise
    return UserModel(file, _Infer(function, signature), signature)


def _read(file: Path, name: str) -> Function:
    function = getattr(run_file(file), name, None)
    if not callable(function):
        msg = f"{file}: defines no function '{name}'"
        raise UnsupportedModelError(msg)
    return cast("Function", function)


def _declared(specs: tuple[TensorSpec, ...]) -> dict[str, TensorDeclaration]:
    return {spec.name: (spec.datatype.value, spec.shape) for spec in specs}


def load_pipeline(directory: Path | str, options: LoadOptions | None = None) -> Pipeline:
    """Return the pipeline in a directory with `pipeline.yaml`, ready to run; the caller closes it.

    Also for training: it processes data exactly as serving does. Python steps run their author's
    code.

    Raises:
        UnsupportedModelError: It cannot be loaded; the message names the step and the reason.
        FailedPreconditionError: A library is missing; the message says what to install.
    """
    directory = Path(directory)
    return build_pipeline(directory, read_spec(directory), options or LoadOptions())


def build_pipeline(
    directory: Path,
    spec: PipelineSpec,
    options: LoadOptions,
    *,
    loaded: Mapping[str, Model] | None = None,
) -> Pipeline:
    """Return the pipeline that `spec` describes, with the files in `directory`.

    Args:
        loaded: Models that are loaded already, by path; the pipeline closes those that it uses.

    Raises:
        UnsupportedModelError: As in `load_pipeline`.
        FailedPreconditionError: As in `load_pipeline`.
    """
    with ExitStack() as opened:
        steps: list[PipelineStep] = []
        tensors: dict[str, TensorSpec] = {}
        for step_name, step_spec in named_steps(spec):
            around = StepContext(
                directory=directory, options=options, tensors=tensors, loaded=loaded or {}
            )
            try:
                model = _open(step_spec, step_name, around)
            except (UnsupportedModelError, FailedPreconditionError) as error:
                raise type(error)(f"{directory.name}: step '{step_name}': {error}") from error
            opened.callback(model.close)
            step = _wired(step_spec, step_name, model)
            tensors |= {
                step.writes[spec.name]: replace(spec, name=step.writes[spec.name])
                for spec in model.signature.outputs
            }
            steps.append(step)
        pipeline = Pipeline(steps, spec.outputs)
        opened.pop_all()
    return pipeline


def named_steps(spec: PipelineSpec) -> Iterator[tuple[str, AnyStepSpec]]:
    """Yield each step with a unique name: its own, or its kind with a number."""
    taken: set[str] = set()
    for step in spec.steps:
        base = step.name or step.kind
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        yield name, step


def code_steps(directory: Path) -> Iterator[str]:
    """Yield the parts of a pipeline that run their author's code: functions, and some models."""
    for name, step in named_steps(read_spec(directory)):
        if isinstance(step, FunctionSpec):
            yield f"step '{name}' ({step.function})"
        for path, runtime in _models_of(step):
            if runs := code_of(directory, path, runtime):
                yield f"step '{name}' ({path}, runtime '{runs}')"


def check_features(directory: Path, service: str, columns: Sequence[TensorSpec]) -> bool:
    """Return whether a pipeline has a feature step, after comparing its columns with `service`.

    Raises:
        UnsupportedModelError: It was made with other columns.
    """
    steps = [step for step in read_spec(directory).steps if isinstance(step, FeaturesStepSpec)]
    for features_step in steps:
        check_service(features_step, service, columns)
    return bool(steps)


def _models_of(spec: AnyStepSpec) -> list[tuple[str, str]]:
    """Return the models that a step loads, each with the runtime that it names."""
    if isinstance(spec, ModelStepSpec):
        return [(spec.path, spec.runtime)]
    if isinstance(spec, EnsembleSpec | CascadeSpec):
        return [(path, "") for path in spec.models]
    return []


def _open(spec: AnyStepSpec, step_name: str, around: StepContext) -> Model:  # noqa: C901, PLR0911  # one for each kind
    match spec:
        case FunctionSpec():
            return open_function(spec, around.file(spec.function.rpartition(":")[0]), step_name)
        case TokenizerSpec():
            return TokenizerStep.open(
                around.file(spec.file),
                max_length=spec.max_length,
                datatype=Datatype(spec.datatype),
                offsets=spec.offsets,
                pairs=spec.pairs,
            )
        case VectorizerSpec():
            return open_vectorizer(spec, around)
        case ImageSpec():
            return open_image(spec)
        case ModelStepSpec():
            return around.model(spec.path, spec.runtime)
        case EnsembleSpec():
            return open_ensemble(spec, around)
        case CascadeSpec():
            return open_cascade(spec, around)
        case PoolingSpec():
            return open_pool(spec, around)
        case FeaturesStepSpec():
            return open_features(spec, around.options.features)
        case ClassifySpec():
            return open_classify(spec, around)
        case EntitiesSpec():
            return open_entities(spec, around)
        case _:
            assert_never(spec)


def _wired(spec: AnyStepSpec, step_name: str, model: Model) -> PipelineStep:
    """Return the step with its own names mapped to the pipeline's."""
    signature = model.signature
    reads = {tensor.name: tensor.name for tensor in signature.inputs}
    writes = {tensor.name: tensor.name for tensor in signature.outputs}
    if not isinstance(spec, FunctionSpec):
        reads = _mapped(step_name, "inputs", reads, spec.inputs)
        writes = _mapped(step_name, "outputs", writes, spec.outputs)
    return PipelineStep(name=step_name, model=model, reads=reads, writes=writes)


def _mapped(
    step_name: str, description: str, own: dict[str, str], names: Mapping[str, str]
) -> dict[str, str]:
    unknown = [name for name in names if name not in own]
    if unknown:
        msg = (
            f"step '{step_name}': {description} maps '{unknown[0]}', which is unknown; the step "
            f"has: {', '.join(own)}"
        )
        raise UnsupportedModelError(msg)
    mapped = {**own, **names}
    if len(set(mapped.values())) < len(mapped) and description == "outputs":
        raise UnsupportedModelError(f"step '{step_name}': two outputs have the same name")
    return mapped
