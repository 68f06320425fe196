"""Base class and field types of the sections of a study file: closed keys, strict types, limits.

Light: nothing but pydantic is imported here.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

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


def _per_layer(value: Any, most: int) -> int | list[int]:
    """A whole number from 1 to `most`, or a list of them; one complaint, where a union of types has one for each type."""
    if value == []:
        raise ValueError("is empty; give one number for each layer of the model")
    for place, number in enumerate(value if isinstance(value, list) else [value]):
        if type(number) is not int or not 1 <= number <= most:
            where = f"layer {place}: " if isinstance(value, list) else ""
            raise ValueError(f"{where}{str(number)[:60]!r} is no whole number from 1 to {most:,}; correct it")
    return value  # type: ignore[no-any-return]


def _experts(value: Any) -> int | list[int] | dict[str, int | list[int]]:
    if not isinstance(value, dict):
        return _per_layer(value, MAX_EXPERTS)
    if not value:
        raise ValueError("is empty; give each target module its experts")
    found = {}
    for module, counts in value.items():
        if not isinstance(module, str):
            raise ValueError(f"{module!r} is no module's name; write target modules")
        try:
            found[module] = _per_layer(counts, MAX_EXPERTS)
        except ValueError as error:
            raise ValueError(f"{module[:60]}: {error}") from None
    return found


_Ranks = Rank | Annotated[list[Rank], Field(min_length=1)]
_Counts = Experts | Annotated[list[Experts], Field(min_length=1)]
RankOfLayers = Annotated[
    int | list[int], PlainValidator(lambda value: _per_layer(value, MAX_RANK), json_schema_input_type=_Ranks)
]
"""One number, or one for each layer."""
ExpertsOfLayers = Annotated[
    int | list[int] | dict[str, int | list[int]],
    PlainValidator(
        _experts, json_schema_input_type=_Counts | Annotated[dict[str, _Counts], Field(min_length=1)]
    ),
]
"""One number, or one for each layer; or either of them for each target module."""


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
