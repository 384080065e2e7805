"""Hugging Face folder as a pipeline: tokenizer or image decoder, model, and the task's result.

The steps are those of a `pipeline.yaml`; their settings come from the folder's JSON files, so that
answers are those of the pipelines of transformers and of sentence-transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from headrace.core import Datatype, ModelSignature, UnsupportedModelError
from headrace.pipeline.build import build_pipeline
from headrace.pipeline.context import ByLength
from headrace.pipeline.pipeline import Pipeline
from headrace.pipeline.spec import (
    AnyStepSpec,
    ClassifySpec,
    EntitiesSpec,
    ImageSpec,
    ModelStepSpec,
    PipelineSpec,
    PoolingSpec,
    TokenizerSpec,
)
from headrace.runtimes import LoadOptions, Model, get_runtime
from headrace.runtimes.huggingface import (
    CONFIG,
    IMAGE_PROCESSOR,
    TOKENIZER,
    HubFolder,
    HubTask,
    read_json,
    read_modules,
)

_TOKENS: Final = ("input_ids", "attention_mask", "token_type_ids")
_VECTORS: Final = ("last_hidden_state", "token_embeddings")
"""Outputs with token vectors, as transformers and sentence-transformers name them."""
_POOLED: Final = "sentence_embedding"
"""Output of an export that includes the modules after the transformer."""
_BEST_IMAGE_LABELS: Final = 5
"""Labels of an image, as in the pipeline of transformers."""
_POOLING_MODES: Final[Mapping[str, Literal["mean", "first", "max"]]] = {
    "cls": "first",
    "mean": "mean",
    "max": "max",
}
_INTERPOLATIONS: Final[Mapping[int, Literal["nearest", "bilinear", "bicubic"]]] = {
    0: "nearest",
    2: "bilinear",
    3: "bicubic",
}
"""By Pillow's number in `resample`."""
_PROCESSORS: Final = {
    "Bit": True,
    "CLIP": True,
    "ConvNext": False,
    "DeiT": True,
    "MobileNetV1": True,
    "MobileNetV2": True,
    "Siglip": False,
    "ViT": False,
}
"""Supported image processors, and whether they crop by default."""
_SQUARE: Final = frozenset({"DeiT", "Siglip", "ViT"})
"""Processors for which a single number in `size` is both sides, not the shorter one."""
_SUFFIXES: Final = ("ImageProcessorFast", "ImageProcessor", "FeatureExtractor")
_CONVNEXT_LARGE: Final = 384
"""Size from which ConvNext's processor stretches instead of cropping."""
_CONVNEXT_CROP: Final = 224 / 256


def load_huggingface(path: Path, options: LoadOptions) -> Pipeline:
    """Return the pipeline of a Hugging Face folder; the caller closes it.

    Raises:
        UnsupportedModelError: The folder's task or a setting is not supported, or the model cannot
            be loaded.
        FailedPreconditionError: A library is missing; the message says what to install.
    """
    folder = HubFolder.read(path)
    image = None if folder.task.takes_text else image_spec(folder)
    if folder.is_onnx:
        core: Model = get_runtime("onnx").load(path / folder.model_file, options)
    else:
        from headrace.runtimes.torch.pretrained import open_pretrained  # noqa: PLC0415  # few have no ONNX file

        core = open_pretrained(folder, options, image_size=image.size if image else (0, 0))
    try:
        model = ByLength.around(core)
        spec = pipeline_spec(folder, core.signature, image)
        return build_pipeline(path, spec, options, loaded={folder.model_file: model})
    except BaseException:
        core.close()
        raise


def pipeline_spec(
    folder: HubFolder, signature: ModelSignature, image: ImageSpec | None
) -> PipelineSpec:
    """Return the steps that a folder describes.

    Args:
        signature: Signature of the model itself, from tokens or pixels.
        image: The step that decodes images; None for a model of texts.

    Raises:
        UnsupportedModelError: A setting or an input of the model is not supported.
    """
    names = [spec.name for spec in signature.inputs]
    if image is not None:
        if len(names) != 1:
            raise _refuse(folder, f"the model takes {', '.join(names)}, and not only pixels")
        model = ModelStepSpec(kind="model", path=folder.model_file, inputs={names[0]: "pixels"})
        steps: list[AnyStepSpec] = [image, model]
    else:
        is_pooled = folder.task is HubTask.FEATURE_EXTRACTION and _POOLED in {
            spec.name for spec in signature.outputs
        }
        model = ModelStepSpec(
            kind="model",
            path=folder.model_file,
            outputs={_POOLED: "embedding"} if is_pooled else {},
        )
        steps = [_tokenizer(folder, signature), model]
        if is_pooled:
            return PipelineSpec(steps=tuple(steps), outputs=("embedding",))
    output = _output(folder, signature)
    match folder.task:
        case HubTask.FEATURE_EXTRACTION:
            mode, normalizes = _pooling(folder)
            inputs = {"last_hidden_state": output}
            last: AnyStepSpec = PoolingSpec(
                kind="pool", mode=mode, normalize=normalizes, inputs=inputs
            )
        case HubTask.TOKEN_CLASSIFICATION:
            last = EntitiesSpec(kind="entities", labels=folder.labels, inputs={"logits": output})
        case _:
            last = _classify(folder, output)
    return PipelineSpec(steps=(*steps, last))


def _tokenizer(folder: HubFolder, signature: ModelSignature) -> TokenizerSpec:
    unknown = [spec.name for spec in signature.inputs if spec.name not in _TOKENS]
    if unknown:
        msg = f"the model takes '{unknown[0]}'; only {', '.join(_TOKENS)} are made of a text"
        raise _refuse(folder, msg)
    if not (folder.path / TOKENIZER).is_file():
        msg = (
            f"there is no {TOKENIZER}; write it with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
        raise _refuse(folder, msg)
    datatype = signature.inputs[0].datatype
    return TokenizerSpec(
        kind="tokenizer",
        file=TOKENIZER,
        max_length=folder.max_tokens,
        datatype="INT32" if datatype is Datatype.INT32 else "INT64",
        offsets=folder.task is HubTask.TOKEN_CLASSIFICATION,
        pairs=folder.takes_pairs,
    )


def _output(folder: HubFolder, signature: ModelSignature) -> str:
    """Return the output with the task's result: by its name, else the only one of its form."""
    names = [spec.name for spec in signature.outputs]
    usual: tuple[str, ...] = (
        _VECTORS if folder.task is HubTask.FEATURE_EXTRACTION else (folder.task.output,)
    )
    is_per_text = folder.task in {HubTask.TEXT_CLASSIFICATION, HubTask.IMAGE_CLASSIFICATION}
    rank = 2 if is_per_text else 3
    fitting = [
        spec.name
        for spec in signature.outputs
        if spec.datatype is Datatype.FP32 and len(spec.shape) == rank
    ]
    candidates: list[str] = [*usual, *(fitting if len(fitting) == 1 else [])]
    for name in candidates:
        if name in names:
            return name
    msg = f"the model has no output {' or '.join(usual)}, only {', '.join(names)}"
    raise _refuse(folder, msg)


def _classify(folder: HubFolder, output: str) -> ClassifySpec:
    """Return the last step as the pipelines of transformers choose it."""
    labels, problem = folder.labels, folder.config.get("problem_type")
    is_multi = problem == "multi_label_classification"
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    if problem == "regression":
        activation = "none"
    elif is_multi or len(labels) == 1:
        activation = "sigmoid"
    top_k = None
    if folder.task is HubTask.IMAGE_CLASSIFICATION:
        top_k = min(_BEST_IMAGE_LABELS, len(labels))
    elif is_multi:
        top_k = min(len(labels), 1024)
    return ClassifySpec(
        kind="classify",
        labels=labels,
        activation=activation,
        top_k=top_k,
        inputs={"logits": output},
    )


def _pooling(folder: HubFolder) -> tuple[Literal["mean", "first", "max"], bool]:
    """Return how sentence-transformers pools, and whether it normalizes; the mean by default."""
    modules = read_modules(folder.path)
    if modules is None:
        return "mean", False
    mode: Literal["mean", "first", "max"] | None = None
    normalizes = False
    for kind, name in modules:
        if kind == "Pooling":
            config = read_json(folder.path, f"{name}/{CONFIG}") or {}
            mode = _pooling_mode(folder, config)
        elif kind == "Normalize":
            normalizes = True
        elif kind != "Transformer" or name:
            what = f"{kind} in '{name}'" if name else kind
            msg = f"the module {what} is not supported, only Transformer, Pooling and Normalize"
            raise _refuse(folder, msg)
    return mode or "mean", normalizes


def _pooling_mode(folder: HubFolder, config: Mapping[str, Any]) -> Literal["mean", "first", "max"]:
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes += [
        key.removeprefix("pooling_mode_").removesuffix("s").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    if len(modes) == 1 and modes[0] in _POOLING_MODES:
        return _POOLING_MODES[modes[0]]
    msg = f"pooling by {', '.join(modes) or 'nothing'} is not supported, only by mean, cls or max"
    raise _refuse(folder, msg)


def image_spec(folder: HubFolder) -> ImageSpec:
    """Return the step that decodes images as the folder's image processor does.

    Raises:
        UnsupportedModelError: The processor, or one of its settings, is not supported.
    """
    config = read_json(folder.path, IMAGE_PROCESSOR)
    if config is None:
        raise _refuse(folder, f"there is no {IMAGE_PROCESSOR}")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = next((kind.removesuffix(end) for end in _SUFFIXES if kind.endswith(end)), kind)
    if kind not in _PROCESSORS:
        msg = f"the image processor '{kind}' is not supported, only {', '.join(_PROCESSORS)}"
        raise _refuse(folder, msg)
    if folder.config.get("num_channels", 3) != 3:  # noqa: PLR2004  # RGB
        raise _refuse(folder, "only models of images with 3 channels are supported")
    resample = config.get("resample", 2 if kind == "ViT" else 3)
    if resample not in _INTERPOLATIONS:
        raise _refuse(folder, f"'resample' {resample!r} in {IMAGE_PROCESSOR} is not supported")
    shared: dict[str, Any] = {"kind": "image", "interpolation": _INTERPOLATIONS[resample]}
    if config.get("do_rescale", True):
        shared["scale"] = float(config.get("rescale_factor", 1 / 255))
    else:
        shared["scale"] = 1.0
    if config.get("do_normalize", True):
        shared |= {"mean": config.get("image_mean"), "std": config.get("image_std")}
    try:
        return ImageSpec.model_validate({**shared, **_resizing(kind, config)})
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{IMAGE_PROCESSOR} is not supported: {type(error).__name__}"
        raise _refuse(folder, reason) from error


def _resizing(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the image step that resize and crop.

    Raises:
        KeyError: A setting is missing, or not supported.
    """
    size = config["size"]
    if isinstance(size, int):
        is_square = kind in _SQUARE
        size = {"height": size, "width": size} if is_square else {"shortest_edge": size}
    if not config.get("do_resize", True) or {"longest_edge", "max_height"} & set(size):
        raise KeyError("size")
    shortest = size.get("shortest_edge")
    if kind == "ConvNext":
        side = int(shortest)
        if side >= _CONVNEXT_LARGE:
            return {"size": (side, side)}
        outer = int(side / float(config.get("crop_pct") or _CONVNEXT_CROP))
        return _cropped((side, side)) | {"shorter_side": outer}
    if config.get("do_center_crop", _PROCESSORS[kind]):
        crop = config["crop_size"]
        inner = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        if shortest is not None:
            return _cropped(inner) | {"shorter_side": shortest}
        return _cropped(inner) | {"stretched": (size["height"], size["width"])}
    return {"size": (size["height"], size["width"])}


def _cropped(size: tuple[int, int]) -> dict[str, Any]:
    return {"size": size, "resize": "crop", "crop_rounding": "down"}


def _refuse(folder: HubFolder, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{folder.path} is a Hugging Face folder: {reason}")
