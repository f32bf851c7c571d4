"""Defines the base class of every group of keys in a sweep file."""

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """A group of keys: unknown keys are faults, values are never silently converted (`true` is not
    1, `"8"` is not 8)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
