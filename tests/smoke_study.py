"""The smoke study, changed as a test needs it."""

from mola_core.study.loading import load_study
from mola_core.study.study import Study


def smoke(**changes) -> Study:
    """The smoke study with sections changed: a mapping changes single settings of its section."""
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    return Study.model_validate(content)
