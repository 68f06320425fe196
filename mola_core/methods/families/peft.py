"""Any other method of PEFT by its own config: `{method: peft, name: ..., config: {peft_type: VERA, r: 64}}`."""

from typing import Any

from mola_core.methods.family import Family, LayerSizes, Request
from mola_core.methods.peft_configs import check, fields_of

OWN_TARGETS = {"LN_TUNING", "ADAPTION_PROMPT"}
"""Methods for modules of another kind than the study's target modules: PEFT knows them for each architecture."""


def _config(request: Request) -> dict[str, Any]:
    """The config as written, and the study's target modules where it names none and PEFT takes some."""
    given = request.settings.config
    assert given is not None
    check(given)
    config = dict(given)
    fields = fields_of(config["peft_type"]) or ()
    if "target_modules" in fields and config["peft_type"] not in OWN_TARGETS:
        config.setdefault("target_modules", list(request.adapter.target_modules))
    elif request.settings.target_modules is not None:
        raise ValueError(
            f"method {request.settings.label!r}: target_modules means nothing to {config['peft_type']}; remove it"
        )
    return {"task_type": "CAUSAL_LM", **config}


def _counted(request: Request, sizes: LayerSizes) -> None:
    return None


FAMILIES = (
    Family(
        "peft", ("peft",), "peft (with `config`)", "baseline",
        "#7F7F7F", "P", _config, _counted, takes=("config", "target_modules", "loraplus_ratio"),
    ),
)  # fmt: skip
