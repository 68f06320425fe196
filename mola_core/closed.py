"""The base of every section of a study file. Light: nothing but pydantic is imported here."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_SEED = 2**32 - 1
"""numpy's and transformers' random generators take 32 bits."""
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]


class Closed(BaseModel):
    """A section of the study file: unknown keys are errors, values are not coerced from other types."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
