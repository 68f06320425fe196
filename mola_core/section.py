"""Base class and field types of the sections of a study file: closed keys, strict types, limits.

Light: nothing but pydantic is imported here.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mola_core.paths import usable_path

MAX_SEED = 2**32 - 1
"""numpy's and transformers' random generators take 32 bits."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"

Name = Annotated[str, Field(pattern=f"^{SAFE_NAME}$", max_length=80)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Few = Annotated[int, Field(ge=1, le=1024)]
MAX_EXPERTS = 1024
"""Of a layer."""
Experts = Annotated[int, Field(ge=1, le=MAX_EXPERTS)]
MAX_RANK = 65_536
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Epochs = Annotated[float, Field(gt=0, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Coefficient = Annotated[float, Field(ge=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]


Folder = Annotated[str, Field(min_length=1), AfterValidator(usable_path)]


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
