"""Model of a Hugging Face folder, run by PyTorch with the classes of the library transformers.

Weights are data: safetensors, or a pickle that PyTorch reads with `weights_only`. Code in the
folder is never imported (`trust_remote_code` is off).
"""

import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from headrace.core import (
    VARIABLE,
    Datatype,
    ModelSignature,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.runtimes.base import LoadOptions
from headrace.runtimes.huggingface import HubFolder, HubTask
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.probe import probe_batch
from headrace.runtimes.tables.tabular import import_library
from headrace.runtimes.torch.module import (
    Program,
    TorchModel,
    choose_device,
    import_torch,
    quiet,
)

EXTRA: Final = "huggingface"
PIXELS: Final = "pixel_values"
_CHANNELS: Final = 3
_AUTO_CLASSES: Final = {
    HubTask.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    HubTask.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    HubTask.FEATURE_EXTRACTION: "AutoModel",
    HubTask.IMAGE_CLASSIFICATION: "AutoModelForImageClassification",
}
_UNUSED: Final = "pooler."
"""Weights that a checkpoint may lack: no supported task reads the pooler of a plain encoder."""


def open_pretrained(
    folder: HubFolder, options: LoadOptions, *, image_size: tuple[int, int] = (0, 0)
) -> TorchModel:
    """Return the model, from tokens or pixels to `logits` or `last_hidden_state`.

    Args:
        image_size: Height and width of the pixels, for a model of images.

    Raises:
        FailedPreconditionError: A library is missing; the message says how to install it.
        UnsupportedModelError: The library cannot load the model, or weights are missing.
    """
    import_library("torch", EXTRA)
    torch, _ = import_torch()
    transformers = import_library("transformers", EXTRA)
    device = choose_device(torch, options.device)
    auto_class = getattr(transformers, _AUTO_CLASSES[folder.task])
    try:
        with quiet(), _without_logs():
            module, loading = auto_class.from_pretrained(
                str(folder.path),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=not folder.is_pickle,
                output_loading_info=True,
            )
    except Exception as error:
        # The library raises any exception.
        reason = f"transformers cannot load it: {reason_of(error)}"
        raise UnsupportedModelError(f"{folder.path}: {reason}") from error
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        msg = (
            f"{folder.path}: the weights lack '{missing[0]}'"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}, which the task "
            f"{folder.task} needs: the model was not trained for it"
        )
        raise UnsupportedModelError(msg)
    module = module.float().eval().to(device)
    inputs = _inputs(folder, module, image_size)
    names = [spec.name for spec in inputs]
    output = folder.task.output

    def call(tensors: Mapping[str, Any]) -> object:
        answer = module(**{name: tensors[name] for name in names}, return_dict=True)
        return {output: answer[output]}

    program = Program(
        call=call,
        inputs=inputs,
        casts={},
        device=device,
        keeps_state=False,
        writes_inputs=False,
        loaded=module,
    )
    size = len(folder.labels)
    if folder.task is HubTask.FEATURE_EXTRACTION:
        sizes = (folder.config.get(key) for key in ("hidden_size", "dim", "d_model"))
        size = next((value for value in sizes if isinstance(value, int)), VARIABLE)
    is_per_token = folder.task in {HubTask.TOKEN_CLASSIFICATION, HubTask.FEATURE_EXTRACTION}
    shape = (VARIABLE, VARIABLE, size) if is_per_token else (VARIABLE, size)
    outputs = (TensorSpec(name=output, datatype=Datatype.FP32, shape=shape),)
    bare = ModelSignature(inputs=inputs, outputs=outputs, batched=True)
    model = TorchModel(program, bare, options.intra_op_threads)
    model.names = {output: output}
    probe = probe_batch(
        model.run, inputs, outputs, declared=options.declared_by or "the library transformers"
    )
    model.signature = probe.signature(inputs)
    return model


def _inputs(
    folder: HubFolder,
    module: Any,
    image_size: tuple[int, int],  # PyTorch's module
) -> tuple[TensorSpec, ...]:
    if not folder.task.takes_text:
        shape = (VARIABLE, _CHANNELS, *image_size)
        return (TensorSpec(name=PIXELS, datatype=Datatype.FP32, shape=shape),)
    names = ["input_ids", "attention_mask"]
    takes_types = "token_type_ids" in inspect.signature(module.forward).parameters
    if takes_types and folder.config.get("type_vocab_size", 1) > 1:
        names.append("token_type_ids")
    return tuple(
        TensorSpec(name=name, datatype=Datatype.INT64, shape=(VARIABLE, VARIABLE)) for name in names
    )


@contextmanager
def _without_logs() -> Iterator[None]:
    """Suppress the progress bars and advice of transformers in the block."""
    progress = importlib.import_module("transformers.utils.logging")
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    progress.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(level)
