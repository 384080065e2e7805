"""Inputs of one model: cached shape checks, and conversion of values to arrays."""

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
    TensorSpec,
    check_inputs,
    wrong_datatype,
    wrong_shape,
)
from headrace.protocol.values import (
    PACK_CODES,
    Body,
    flatten,
    numbers_of,
    object_array,
    pack_bools,
    raise_unpackable,
    split_elements,
)

_REMEMBERED_SHAPES: Final = 1024
_MAX_TENSOR_BYTES: Final = 1 << 40
_MAX_RANK: Final = 64  # NumPy's meaning
_SHOWN_NAME: Final = 200
_SHOWN_DIMS: Final = 16


class ShapePlan(NamedTuple):
    """Properties of a validated shape.

    `byte_size` is 0 for BYTES, whose size depends on the data. `pack` makes the bytes of `elements`
    numbers, None for BOOL and BYTES. `rows` is 1 for a model that is not batched.
    """

    shape: tuple[int, ...]
    elements: int
    byte_size: int
    rows: int
    pack: Callable[..., bytes] | None


class InputTensor:
    """One input of a model: its valid shapes, and the conversion of values to its array."""

    __slots__ = (
        "_batched",
        "_max_batch_size",
        "_model",
        "_nulls",
        "datatype",
        "dtype",
        "name",
        "plans",
        "spec",
    )

    def __init__(
        self,
        model: str,
        spec: TensorSpec,
        *,
        batched: bool,
        max_batch_size: int | None,
        nulls: NullPolicy = NullPolicy.NAN,
    ) -> None:
        self.name = spec.name
        self.spec = spec
        self.datatype = str(spec.datatype.value)
        self.dtype = spec.datatype.dtype
        self.plans: dict[tuple[int, ...], ShapePlan] = {}
        """Validated shapes, which hot code reads directly to save a call."""
        self._model = model
        self._batched = batched
        self._max_batch_size = max_batch_size
        self._nulls = nulls

    def plan(self, shape: tuple[int, ...]) -> ShapePlan:
        """Return the plan of `shape`.

        Raises:
            InvalidArgumentError: The model does not accept this shape.
        """
        shape_plan = self.plans.get(shape)
        if shape_plan is not None:
            return shape_plan
        self._check_shape(shape)
        count = _product(shape)
        code = PACK_CODES.get(self.spec.datatype)
        plan = ShapePlan(
            shape=shape,
            elements=count,
            byte_size=0 if self.spec.datatype == Datatype.BYTES else count * self.dtype.itemsize,
            rows=shape[0] if self._batched else 1,
            pack=None if code is None else struct.Struct(f"<{count}{code}").pack,
        )
        if len(self.plans) >= _REMEMBERED_SHAPES:
            self.plans.clear()
        self.plans[shape] = plan
        return plan

    def check_datatype(self, datatype: str) -> None:
        """Raise InvalidArgumentError unless the model accepts this datatype."""
        if datatype == self.datatype:
            return
        # A local variable for the error would make a reference cycle: the error references this
        # frame, and so the whole request, which would live until the next garbage collection.
        if datatype == "BF16":
            error = wrong_datatype(self._model, self.spec, datatype)
            msg = f"{error}; BF16 is not supported, send {self.datatype}"
            raise InvalidArgumentError(msg)
        raise wrong_datatype(self._model, self.spec, datatype[:_SHOWN_NAME])

    def check_count(self, plan: ShapePlan, actual: int) -> None:
        """Raise InvalidArgumentError unless `got` is the number of elements in `plan`."""
        if actual != plan.elements:
            raise InvalidArgumentError(
                f"unexpected number of elements for input '{self.name}': "
                f"shape {short_shape(plan.shape)} has {plan.elements}, got {actual}"
            )

    def from_values(self, plan: ShapePlan, data: list[Any]) -> Array:
        """Return the array of JSON values, flat or nested by shape, each value validated."""
        return self.from_flat(plan, flatten(self.name, data, plan.shape))

    def from_flat(self, plan: ShapePlan, flat: list[Any]) -> Array:
        """Return the array of JSON values in row-major order, each value validated."""
        self.check_count(plan, len(flat))
        flat = numbers_of(self.name, self.spec.datatype, flat, self._nulls)
        return self.from_numbers(plan, flat)

    def from_typed(self, plan: ShapePlan, flat: list[Any]) -> Array:
        """Return the array of values with the datatype's type, in row-major order."""
        self.check_count(plan, len(flat))
        return self.from_numbers(plan, flat)

    def from_numbers(self, plan: ShapePlan, flat: list[Any]) -> Array:
        """Return the array of values with a checked count and JSON types; this checks their ranges.

        A null may be among them.
        """
        if plan.pack is not None:
            try:
                return np.ndarray(plan.shape, self.dtype, plan.pack(*flat))
            except (struct.error, OverflowError):
                if None in flat:
                    return self.from_flat(plan, flat)
                raise_unpackable(self.name, self.spec.datatype, flat)
        if self.spec.datatype == Datatype.BOOL:
            return np.ndarray(plan.shape, self.dtype, pack_bools(self.name, flat))
        return object_array([v.encode() if isinstance(v, str) else v for v in flat], plan.shape)

    def from_raw(self, plan: ShapePlan, body: Body, offset: int, size: int) -> Array:
        """Return the array whose raw bytes are `body[at : at + size]`, which must exist.

        It is a view of `body`, except where that is not aligned for its datatype: native code may
        crash on such memory, so it is copied.
        """
        datatype = self.spec.datatype
        if datatype == Datatype.BYTES:
            raw = memoryview(body)[offset : offset + size]
            return object_array(split_elements(raw, plan.elements, self.name), plan.shape)
        if size != plan.byte_size:
            msg = (
                f"input byte size mismatch for input '{self.name}' for model '{self._model}'. "
                f"Expected {plan.byte_size}, got {size}"
            )
            raise InvalidArgumentError(msg)
        if not size:
            return np.empty(plan.shape, self.dtype)
        array: Array = np.ndarray(plan.shape, self.dtype, body, offset)
        if datatype == Datatype.BOOL and array.view(np.uint8).max() > 1:
            msg = f"input '{self.name}' has a BOOL element whose byte is neither 0 nor 1"
            raise InvalidArgumentError(msg)
        return array if array.flags.aligned else array.copy()

    def from_raw_body(self, plan: ShapePlan, body: Body) -> Array:
        """Return the array of a body that contains only this tensor's data.

        For BYTES the whole body is one element, without a length prefix.
        """
        if self.spec.datatype != Datatype.BYTES:
            return self.from_raw(plan, body, 0, len(body))
        if plan.elements != 1:
            msg = (
                f"a raw binary request can hold one BYTES element, but input '{self.name}' of "
                f"model '{self._model}' has {plan.elements}; send a JSON header"
            )
            raise InvalidArgumentError(msg)
        return object_array([bytes(body)], plan.shape)

    def raw_shape(self, size: int) -> tuple[int, ...]:
        """Return the shape of a request that is only `size` bytes of data.

        Raises:
            InvalidArgumentError: The model has more than one variable dimension.
        """
        shape = list(self.spec.shape)
        if self._batched:
            shape[0] = 1
        free = [axis for axis, dim in enumerate(shape) if dim == VARIABLE]
        if self.spec.datatype == Datatype.BYTES:
            return tuple(1 if dim == VARIABLE else dim for dim in shape)
        if len(free) > 1:
            msg = (
                f"a raw binary request leaves the shape of input '{self.name}' open: model "
                f"'{self._model}' has more than one variable dimension; send a JSON header"
            )
            raise InvalidArgumentError(msg)
        if free:
            rest = _product(dim for dim in shape if dim != VARIABLE) * self.dtype.itemsize
            shape[free[0]] = size // rest if rest else 0
        return tuple(shape)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        model, name = self._model, self.name
        if self._batched and not shape:
            msg = f"input '{name}' has no shape but model requires batch dimension for '{model}'"
            raise InvalidArgumentError(msg)
        if len(shape) > _MAX_RANK or any(not 0 <= dim < _MAX_TENSOR_BYTES for dim in shape):
            msg = f"shape {short_shape(shape)} of input '{name}' is not a valid shape"
            raise InvalidArgumentError(msg)
        if not self.spec.fits(shape):
            raise wrong_shape(model, self.spec, shape)
        if _product(max(dim, 1) for dim in shape) * self.dtype.itemsize > _MAX_TENSOR_BYTES:
            msg = f"shape {short_shape(shape)} of input '{name}' is larger than any request"
            raise InvalidArgumentError(msg)
        if self._batched:
            rows = shape[0]
            if rows == 0:
                msg = f"inference request for model '{self._model}' has a batch size of 0"
                raise InvalidArgumentError(msg)
            if self._max_batch_size is not None and rows > self._max_batch_size:
                msg = (
                    f"inference request batch-size must be <= {self._max_batch_size} "
                    f"for '{self._model}', got {rows}"
                )
                raise InvalidArgumentError(msg)


class ModelInputs:
    """All inputs of a model, by name."""

    __slots__ = ("_signature", "model", "tensors")

    def __init__(
        self,
        model: str,
        signature: ModelSignature,
        *,
        max_batch_size: int | None = None,
        nulls: NullPolicy = NullPolicy.NAN,
    ) -> None:
        self.model = model
        self.tensors = {
            spec.name: InputTensor(
                model,
                spec,
                batched=signature.batched,
                max_batch_size=max_batch_size,
                nulls=nulls,
            )
            for spec in signature.inputs
        }
        self._signature = signature

    def get(self, name: str) -> InputTensor:
        """Return the input of this name; else raise InvalidArgumentError."""
        tensor = self.tensors.get(name)
        if tensor is None:
            msg = f"unexpected inference input '{name[:_SHOWN_NAME]}' for model '{self.model}'"
            raise InvalidArgumentError(msg)
        return tensor

    def raise_misfit(self, names: list[str], inputs: Mapping[str, Array]) -> NoReturn:
        """Raise the error for inputs that are valid one by one but not together."""
        twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if twice is not None:
            msg = f"input '{twice}' already exists in request for model '{self.model}'"
            raise InvalidArgumentError(msg)
        check_inputs(self.model, self._signature, inputs)
        raise AssertionError(names)  # unreachable: check_inputs reports every misfit


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def short_shape(shape: tuple[int, ...]) -> str:
    """Return `shape` for a message, truncated if it is long, whatever it contains."""
    text = ",".join(str(dim) if abs(dim) < 1 << 64 else "huge" for dim in shape[:_SHOWN_DIMS])
    return f"[{text},...]" if len(shape) > _SHOWN_DIMS else f"[{text}]"
