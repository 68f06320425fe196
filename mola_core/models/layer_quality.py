"""How well each layer of a base model was trained, read from the spectra of its weights alone (PL_Alpha_Hill).

Heavy-tailed self-regularisation holds that the eigenvalues of W^T W of a well-trained weight follow a power law with
a small exponent. The exponent is Hill's estimate (Hill, 1975), as in AlphaLoRA (Qing et al., EMNLP 2024), whose
allocation of experts uses it and which the MoLA paper correlates with the redundancy of its experts (appendix H).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.code_hash import code_hash
from mola_core.errors import MolaError
from mola_core.files import read_json, write_json
from mola_core.models.loading import stored_depth, stored_quantization
from mola_core.models.sources import weight_files
from mola_core.module_names import places_in_stack
from mola_core.records import digest

if TYPE_CHECKING:
    import pandas as pd
    import torch

ESTIMATES = ("fitted", "median")
"""Where the tail begins, see `hill_fitted` and `hill_median`."""
BINS = 100
UNQUANTISED = "use the unquantised model, or methods that do not look at its layers"
NO_TAIL = "its eigenvalues have no tail, most are zero or all are the same"


def hill(eigenvalues: torch.Tensor, start: int) -> float:
    """`1 + k / sum_{i=1..k} ln(l_{n-i+1} / l_{n-k})` over the k = n - start largest of n ascending eigenvalues.

    l_{n-k} is the largest eigenvalue below the tail, `eigenvalues[start - 1]`. Raises ValueError where it is not
    above zero or equals the whole tail.
    """
    tail = eigenvalues[start:].log() - eigenvalues[start - 1].log()
    total = float(tail.sum())
    if not 0 < total < float("inf"):
        raise ValueError(NO_TAIL)
    return 1 + len(tail) / total


def hill_median(eigenvalues: torch.Tensor) -> float:
    """Hill's estimate with the upper half of the ascending eigenvalues, k = n // 2 (AlphaPruning, NeurIPS 2024)."""
    return hill(eigenvalues, len(eigenvalues) - len(eigenvalues) // 2)


def hill_fitted(eigenvalues: torch.Tensor) -> float:
    """Hill's estimate with the tail that fits a power law best, as AlphaLoRA's released code computes it.

    Candidates for the tail's first eigenvalue x are those from 0.95 to 1.5 times the peak of the histogram (100 bins
    of the logarithm); the one whose power law has the smallest Kolmogorov-Smirnov distance to the tail is taken, and
    the exponent is `1 + m / sum ln(l / x)` over its m eigenvalues. (The released code compares with the logarithm of
    the lower bound, a slip that changes the layers' scores of SmolLM2-135M by less than 5 %.) Raises ValueError as `hill` does.
    """
    import torch

    logs = eigenvalues[eigenvalues > 0].log()
    if len(logs) < 2 or logs[-1] <= logs[0]:
        raise ValueError(NO_TAIL)
    n = len(logs)
    # Not on a GPU: its histogram adds up in any order.
    counts = torch.histc(logs.cpu(), BINS)
    peak = logs[0] + (logs[-1] - logs[0]) * int(counts.argmax()) / BINS
    near = (
        torch.nonzero((logs[:-1] >= peak + math.log(0.95)) & (logs[:-1] <= peak + math.log(1.5)))
        .flatten()
        .tolist()
    )
    best = (float("inf"), 0.0)
    for start in near:
        tail = logs[start:] - logs[start]
        if not tail.any():
            continue  # equal eigenvalues: no exponent
        alpha = 1 + (n - start) / float(tail.sum())
        empirical = torch.arange(n - start, device=logs.device) / (n - start)
        distance = float((1 - torch.exp(tail * (1 - alpha)) - empirical).abs().max())
        best = min(best, (distance, alpha))
    if not best[1]:
        raise ValueError(NO_TAIL)
    return best[1]


def spectrum(weight: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of W^T W that can differ from zero, ascending, float64: min(d_out, d_in) of them.

    From the smaller Gram matrix in float64, in half the time of a singular value decomposition and, on the upper
    part that the estimates use, as exact.
    """
    import torch

    weight = weight.double()
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    return torch.linalg.eigvalsh(gram)


def measure(folder: Path) -> pd.DataFrame:
    """PL_Alpha_Hill of every weight matrix of the layers of the model in `folder`.

    Columns: layer (from 0), module (its name within the layer), fitted, median. On a GPU where there is one.
    Raises `MolaError` where there are no layers, a matrix has no tail, or weights are stored quantised: their codes have
    another spectrum.
    """
    import pandas as pd
    import torch

    config = folder / "config.json"
    if config.is_file() and (kind := stored_quantization(folder)):
        raise MolaError(f"{folder}: its weights are stored quantised ({kind}); {UNQUANTISED}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for layer, module, weight in _matrices(folder):
        if weight.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise MolaError(
                f"{folder}: layer {layer}, {module}: is stored as {str(weight.dtype).removeprefix('torch.')}; {UNQUANTISED}"
            )
        eigenvalues = spectrum(weight.to(device))
        try:
            rows.append((layer, module, hill_fitted(eigenvalues), hill_median(eigenvalues)))
        except ValueError as error:
            raise MolaError(f"{folder}: layer {layer}, {module}: {error}; use a trained base model") from None
    if not rows:
        raise MolaError(f"{folder}: no layers with weight matrices in safetensors files")
    frame = pd.DataFrame(rows, columns=["layer", "module", *ESTIMATES])
    return frame.sort_values(["layer", "module"], ignore_index=True)


def _matrices(folder: Path) -> Iterator[tuple[int, str, torch.Tensor]]:
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping
                if key.endswith(".weight") and len(tensors.get_slice(key).get_shape()) == 2:
                    files[key.removesuffix(".weight")] = file
    for name, (layer, module) in places_in_stack(files, stored_depth(folder)).items():
        with safe_open(files[name], framework="pt") as tensors:
            yield layer, module, tensors.get_tensor(f"{name}.weight")


def layer_scores(frame: pd.DataFrame, estimate: str = "fitted") -> list[float]:
    """Score of each layer, first layer first: the mean over its matrices, as in AlphaLoRA."""
    return frame.groupby("layer")[estimate].mean().sort_index().tolist()


def layer_quality(model: Path, file: Path) -> pd.DataFrame:
    """`measure`, kept in `file` for the next time: minutes of work for a model of billions.

    It is measured anew where the file was made from another model or by other code. Raises `MolaError` where it is damaged.
    """
    key: dict[str, Any] = {
        "code": code_hash("mola_core.models.layer_quality"),
        "model": digest(read_json(model / "model.json")["files"]),
    }
    if file.is_file():
        made_of, frame = stored(file)
        if made_of == key:
            return frame
    frame = measure(model)
    write_json(file, key | {"matrices": frame.to_dict("records")})
    return frame


def stored(file: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """What `layer_quality` kept: the code and the model that it was made by and of, and the frame. Raises `MolaError` for a
    damaged file."""
    import pandas as pd

    content = read_json(file)
    try:
        frame = pd.DataFrame(content.pop("matrices"))[["layer", "module", *ESTIMATES]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise MolaError(f"{file}: damaged; remove it and run again") from None
    return content, frame
