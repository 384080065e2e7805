"""What all parts of the spec file have in common: strict, unchangeable, and no unknown keys."""

from pydantic import BaseModel, ConfigDict


class SpecModel(BaseModel):
    """A part of the spec file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
