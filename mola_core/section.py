"""Base class and field types of the sections of a study file: closed keys, strict types, limits.

Light: nothing but pydantic is imported here.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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


def usable_path(path: str) -> str:
    """Refuse what the operating system would: Linux takes 4,096 bytes, 255 a name; some are for the files below."""
    try:
        whole = Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path[:60]!r} names a user whose home folder is unknown; write it out") from None
    if len(os.fsencode(whole)) > 3500 or any(len(os.fsencode(part)) > 255 for part in whole.parts):
        raise ValueError(
            "too long for a path: at most 3,500 bytes, 255 for each name in it; use a shorter one"
        )
    if "\0" in path:
        raise ValueError("has a NUL character; remove it")
    return path


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
