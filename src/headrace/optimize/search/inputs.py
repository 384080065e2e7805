"""Inputs of a search: model, examples and the timed request."""

import fnmatch
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    CodeNotAllowedError,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    check_inputs,
)
from headrace.optimize.accuracy import (
    DataOptions,
    Examples,
    ModelAnswers,
    RowTexts,
    cosine_run,
    generated_examples,
    gives_embeddings,
    read_labelled,
)
from headrace.optimize.accuracy.cells import takes_tokens
from headrace.optimize.candidate import ModelClass, Recipe, TrainingExamples
from headrace.optimize.generated_inputs import generated_inputs
from headrace.optimize.search.journal import Started, is_of_all_cores
from headrace.optimize.search.process import DEFAULT_LENGTH, DEFAULT_SIDE, SearchRequest
from headrace.optimize.search.recipes import RecipeSet, find_recipes
from headrace.runtimes import (
    LoadOptions,
    Model,
    code_of_model,
    detect_runtime,
    get_runtime,
    runs_code,
)
from headrace.runtimes.optimized.processor import this_processor

GENERATED: Final = 256
"""Number of generated examples without user data."""
_TOKENS: Final = 7
"""Length of a generated text, distinct from usual widths."""
_MAX_TAUGHT: Final = 20_000


def judged_examples(request: SearchRequest, model: Model, source: Path) -> tuple[Examples, bool]:
    """Return the evaluation examples, and whether they are generated.

    Raises:
        InvalidArgumentError: The file is empty, or does not fit the model.
    """
    if not request.data:
        return generated_examples(model, model.signature, GENERATED, request.seed), True
    options = _data_options(request, is_bi_encoder=_embeds(model))
    examples = read_labelled(Path(request.data), model.signature, options, tokenizer_path=source)
    if not len(examples):
        msg = f"{request.data} holds no examples"
        raise InvalidArgumentError(msg)
    return examples, False


def generate_size(signature: ModelSignature, size: int, seed: int) -> Examples:
    """Generate examples whose variable axes have one size."""
    rows: list[Tensors] = []
    draw = seed
    while len(rows) < GENERATED:
        inputs = generated_inputs(signature, variable=size, draw=draw)
        draw += 1
        if not signature.batched:
            rows.append(inputs)
            continue
        count = len(next(iter(inputs.values())))
        rows += [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)]
    note = f"generated inputs of size {size}, because no data was given"
    return Examples(inputs=rows[:GENERATED], batched=signature.batched, notes=(note,))


def read_training_set(
    request: SearchRequest, examples: Examples, signature: ModelSignature, source: Path
) -> Examples | None:
    """Read the training examples; None without any."""
    if not request.teach:
        return None
    maximum, is_bi_encoder = (
        max(_MAX_TAUGHT, request.calibrate),
        examples.texts is RowTexts.BI_ENCODER,
    )
    options = _data_options(request, maximum, is_bi_encoder=is_bi_encoder)
    return read_labelled(Path(request.teach), signature, options, tokenizer_path=source)


def calibration_of(
    request: SearchRequest, examples: Examples, training_set: Examples | None
) -> tuple[Examples, frozenset[int]]:
    """Return the calibration examples without labels, and their indices in `examples`."""
    pool = examples if training_set is None else training_set
    count = min(request.calibrate, len(pool))
    indices = np.sort(np.random.default_rng(request.seed).permutation(len(pool))[:count])
    is_judged_by = request.data and training_set is None
    return pool.subset(indices).as_model_requests(), frozenset(
        indices.tolist()
    ) if is_judged_by else frozenset()


def training_examples(training_set: Examples | None) -> TrainingExamples | None:
    """Return the examples for training; None without any."""
    if training_set is None:
        return None
    subset = training_set.subset(range(min(len(training_set), _MAX_TAUGHT))).as_model_requests()
    labels = None if subset.labels is None else subset.labels.tolist()
    return TrainingExamples(examples=subset.inputs, labels=labels)


def _data_options(
    request: SearchRequest, limit: int | None = None, *, is_bi_encoder: bool
) -> DataOptions:
    return DataOptions(
        label=request.label,
        text=request.text,
        tokenizer=Path(request.tokenizer) if request.tokenizer else None,
        limit=limit,
        is_bi_encoder=is_bi_encoder,
    )


def _embeds(model: Model) -> bool:
    """Return whether a token model outputs embeddings, as bi-encoders do."""
    if not takes_tokens(model.signature) or not model.signature.batched:
        return False
    rows = generated_inputs(model.signature, variable=_TOKENS)
    sizes = {array.shape[1] for array in rows.values()}
    row = {name: array[:1] for name, array in rows.items()}
    try:
        return gives_embeddings(model.run(row), length=max(sizes))
    except HeadraceError:
        return False


def timed_request(
    example: Tensors, signature: ModelSignature, *, rows: int, length: int | None
) -> Tensors:
    """Repeat an example along axis 0 to `rows` and along variable axes to `length`.

    It is repeated, not padded, because a mask could make the request cheaper than its length
    suggests.

    Args:
        example: One row.
        length: None leaves variable axes unchanged.
    """
    request = {}
    for spec in signature.inputs:
        array = example[spec.name]
        for axis, size in enumerate(spec.shape):
            if axis == 0 and signature.batched:
                array = _repeated(array, 0, rows)
            elif size == VARIABLE and length is not None:
                array = _repeated(array, axis, length)
        request[spec.name] = np.array(array, order="C")  # `ascontiguousarray` makes a scalar a row
    return request


def batch_of(examples: Sequence[Tensors], rows: int) -> Tensors:
    """Return a batch that cycles through examples, as equal rows would cost less than real ones."""
    selected = [examples[index % len(examples)] for index in range(rows)]
    return {
        name: np.ascontiguousarray(np.concatenate([example[name] for example in selected]))
        for name in selected[0]
    }


def loses_batching(model: Model, source: ModelSignature) -> bool:
    """Return whether `model` loses the source's batch axis."""
    return source.batched and not model.signature.batched


def served_run(model: Model, source: ModelSignature) -> Callable[[Tensors], Tensors]:
    """Return a run as in serving: row by row if the model is not batched."""
    if not loses_batching(model, source):
        return model.run

    def one_by_one(inputs: Tensors) -> Tensors:
        rows = len(next(iter(inputs.values())))
        parts = [
            model.run({name: array[row : row + 1] for name, array in inputs.items()})
            for row in range(rows)
        ]
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            raise RuntimeFailedError(f"the rows' answers cannot be batched: {error}") from error

    return one_by_one


def shapes_text(request: Tensors) -> str:
    """Describe a request: `input_ids [1, 128], attention_mask [1, 128]`."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in request.items())


def _repeated(array: Array, axis: int, size: int) -> Array:
    if array.shape[axis] == 0:
        return array
    indices = np.arange(size) % array.shape[axis]
    taken: Array = np.take(array, indices, axis=axis)
    return taken


_MAX_CONCURRENT: Final = 4
"""Runs per core in a throughput round, so that no core idles at its end."""
_PACKAGES: Final = ("headrace", "onnxruntime", "openvino", "nncf", "onnx", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchInputs:
    """Inputs of a search."""

    search_request: SearchRequest
    source: Path
    signature: ModelSignature
    examples: Examples
    """Evaluation examples."""
    calibration: Examples
    """Calibration examples; `overlap` holds the indices of those among `examples`."""
    overlap: frozenset[int]
    training: TrainingExamples | None
    request: Tensors
    """Request that is timed."""
    recipe_set: RecipeSet
    started: Started

    @property
    def held_out(self) -> Sequence[int]:
        """Indices of examples not used for calibration; empty if calibration used none."""
        if not self.overlap:
            return ()
        return [index for index in range(len(self.examples)) if index not in self.overlap]

    def recipe(self, name: str) -> Recipe:
        """Return a recipe by name."""
        return next(recipe for recipe in self.recipe_set.recipes if recipe.name == name)

    def run_of(self, model: Model) -> Callable[[Tensors], Tensors]:
        """Return the run for examples: one run, or two compared embeddings for bi-encoders."""
        run = served_run(model, self.signature)
        return cosine_run(run) if self.examples.texts is RowTexts.BI_ENCODER else run

    def load_of(self, model: Model, pool: Executor) -> Callable[[], None]:
        """Return the timed call: a run, or a round of runs on all cores, by the target.

        Args:
            pool: Executor with one thread per caller.
        """
        rounds = [self.request] * self.started.calls
        run = served_run(model, self.signature)

        def one_by_one() -> None:
            for request in rounds:
                run(request)

        def at_once() -> None:
            for _ in pool.map(run, rounds):
                pass

        return at_once if is_of_all_cores(self.search_request) and model.concurrent else one_by_one

    def check(self, expected: Tensors, actual: Tensors) -> None:
        """Raise RuntimeFailedError if answers differ in names, shapes, datatypes or finiteness."""
        for name, array in expected.items():
            answer = actual.get(name)
            if answer is None:
                raise RuntimeFailedError(f"it lacks the output '{name}'")
            if answer.shape != array.shape:
                shapes = f"{list(answer.shape)} instead of {list(array.shape)}"
                raise RuntimeFailedError(f"output '{name}' has the shape {shapes}")
            if answer.dtype != array.dtype:
                raise RuntimeFailedError(
                    f"output '{name}' is {answer.dtype} instead of {array.dtype}"
                )
            is_float = answer.dtype.kind == "f"
            if is_float and not np.isfinite(answer).all() and np.isfinite(array).all():
                raise RuntimeFailedError(f"output '{name}' holds non-finite numbers")


def open_search_inputs(
    request: SearchRequest, folder: Path, *, on_progress: Callable[[str], None]
) -> SearchInputs:
    """Load the model and the data of a request.

    Raises:
        CodeNotAllowedError: The model runs code, and the request does not allow it.
        UnsupportedModelError: It cannot be loaded.
        InvalidArgumentError: The data does not fit it.
    """
    source = Path(request.source)
    runtime = request.runtime or detect_runtime(source).name
    plugin = get_runtime(runtime)
    if runs_code(plugin, source) and not request.allow_code:
        raise CodeNotAllowedError(str(source), runtime, code_of_model(plugin, source))
    model = plugin.load(source, LoadOptions(device="cpu"))
    try:
        signature = model.signature
        on_progress("reading the examples")
        examples, made_up = judged_examples(request, model, source)
        training_set = read_training_set(request, examples, signature, source)
        calibration, overlap = calibration_of(request, examples, training_set)
        recipe_set = find_recipes(
            source,
            runtime,
            folder,
            allow_code=request.allow_code,
            target=request.target,
            examples=calibration.inputs if request.data else (),
            features=this_processor().features,
        )
        recipes = _selected_recipes(recipe_set.recipes, request.only)
        length = _length(request, signature, recipe_set.model_class)
        if made_up and length is not None and recipe_set.model_class is ModelClass.CONV_NET:
            examples = generate_size(signature, length, request.seed)
            calibration, overlap = calibration_of(request, examples, training_set)
        example_request = _request(request, examples.as_model_requests(), signature, length)
        check_inputs(source.name, signature, example_request)
        model.run(example_request)
        is_concurrent = model.concurrent
    finally:
        model.close()
    labelled = 0 if examples.labels is None else len(examples)
    processor = this_processor()
    return SearchInputs(
        search_request=request,
        source=source,
        signature=signature,
        examples=examples,
        calibration=calibration,
        overlap=overlap,
        training=training_examples(training_set),
        request=example_request,
        recipe_set=recipe_set,
        started=Started(
            runtime=runtime,
            model_class=recipe_set.model_class,
            why_class=recipe_set.why_class,
            recipes=tuple(recipe.name for recipe in recipes if recipe.name not in recipe_set.later),
            later=tuple(recipe.name for recipe in recipes if recipe.name in recipe_set.later),
            examples=len(examples),
            labelled=labelled,
            made_up=made_up,
            calibration=len(calibration),
            calibration_sha256=calibration.sha256() if len(calibration) else "",
            overlapping=bool(overlap),
            request=shapes_text(example_request),
            length=length,
            calls=concurrent_calls(request, concurrent=is_concurrent),
            cores=len(os.sched_getaffinity(0)),
            processor_name=processor.name,
            processor_features=processor.features,
            versions=versions(),
            notes=(*examples.notes, *recipe_set.notes),
        ),
    )


def callers(threads: int) -> int:
    """Return how many concurrent runs with this many threads fit the cores."""
    return max(1, len(os.sched_getaffinity(0)) // threads)


def concurrent_calls(request: SearchRequest, *, concurrent: bool) -> int:
    """Return the runs per timed call."""
    if not is_of_all_cores(request):
        return 1
    return _MAX_CONCURRENT * (callers(request.threads) if concurrent else 1)


def subset_of(answers: ModelAnswers, indices: Sequence[int]) -> ModelAnswers:
    """Return the answers to a subset of the examples."""
    positions = {example: index for index, example in enumerate(indices)}
    return ModelAnswers(
        n=len(indices),
        rows={name: [rows[index] for index in indices] for name, rows in answers.rows.items()},
        failures={
            positions[index]: reason
            for index, reason in answers.failures.items()
            if index in positions
        },
        stopped=answers.stopped,
    )


def versions() -> dict[str, str]:
    """Return the versions of the relevant packages."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def _length(request: SearchRequest, signature: ModelSignature, kind: ModelClass) -> int | None:
    """Return the size of variable axes of the timed request; None for the example's."""
    if not signature.has_variable_size:
        return None
    default = {ModelClass.TRANSFORMER: DEFAULT_LENGTH}
    if not request.data:
        default[ModelClass.CONV_NET] = DEFAULT_SIDE
    return default.get(kind) if request.length is None else request.length


def _request(
    request: SearchRequest, examples: Examples, signature: ModelSignature, length: int | None
) -> Tensors:
    # The median size is more typical than the longest or shortest.
    sizes = [
        sum(array.size for array in example.values()) for example in examples.inputs[:GENERATED]
    ]
    middle = int(np.argsort(sizes, kind="stable")[len(sizes) // 2])
    rows = request.rows if signature.batched else 1
    return timed_request(examples.inputs[middle], signature, rows=rows, length=length)


def _selected_recipes(recipes: Sequence[Recipe], only: Sequence[str]) -> Sequence[Recipe]:
    """Return the baselines and the recipes that match `only`."""
    if not only:
        return recipes
    names = [recipe.name for recipe in recipes]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            msg = f"no recipe of this model matches '{pattern}'; available: {', '.join(names)}"
            raise InvalidArgumentError(msg)
    return [
        recipe
        for index, recipe in enumerate(recipes)
        if index == 0
        or recipe.is_reference
        or any(fnmatch.fnmatch(recipe.name, pattern) for pattern in only)
    ]
