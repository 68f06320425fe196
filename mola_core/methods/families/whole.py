"""The whole model: as it is (`base`), and fully fine-tuned (`full`, every weight, in float32)."""

from mola_core.methods.family import Family, LayerSizes, Request


def _no_adapter(request: Request) -> None:
    return None


def _nothing(request: Request, sizes: LayerSizes) -> int:
    return 0


def _counted(request: Request, sizes: LayerSizes) -> None:
    return None


FAMILIES = (
    Family("base", ("base",), "base", "untrained", "#A6A6A6", "_", _no_adapter, _nothing),
    Family("full", ("full",), "full", "baseline", "#000000", "*", _no_adapter, _counted),
)
