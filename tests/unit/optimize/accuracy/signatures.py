"""Signatures of models that examples are read for."""

from headrace.core import Datatype, ModelSignature, TensorSpec


def of(
    *inputs: TensorSpec,
    batched: bool = True,
    columns: dict[str, tuple[str, ...]] | None = None,
    labels: dict[str, tuple[str, ...]] | None = None,
) -> ModelSignature:
    output = TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, 2))
    return ModelSignature(
        inputs=inputs,
        outputs=(output,),
        batched=batched,
        columns=columns or {},
        labels=labels or {},
    )


def spec(name: str, *shape: int, datatype: Datatype = Datatype.FP32) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def tokens(*names: str, length: int = -1, datatype: Datatype = Datatype.INT64) -> ModelSignature:
    return of(*(spec(name, -1, length, datatype=datatype) for name in names))


MATRIX = of(spec("x", -1, 3))
TEXT = of(spec("text", -1, datatype=Datatype.BYTES))
TOKENS = tokens("input_ids", "attention_mask", "token_type_ids")
