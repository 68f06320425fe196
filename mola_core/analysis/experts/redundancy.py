"""How different the experts of a trained MoLA adapter are: the paper's measure of redundancy (section 6.2, appendix D).

For each adapted module the mean over all pairs of experts of the Frobenius norm of their difference, for A, for B and
for their product BA (without alpha / r): small means redundant. The paper does not say which of the three it plots.
`raw` is that mean, `relative` the same divided by the mean norm of the experts, so that layers whose weights merely
grew more do not look less redundant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from mola_core.analysis.experts.left_out import DIVERGED, LeftOut, told, with_file
from mola_core.errors import MolaError
from mola_core.files import atomic_write
from mola_core.methods.registry import family_of
from mola_core.module_names import short_names
from mola_core.runs.layout import Layout
from mola_core.runs.recovery import diverged
from mola_core.study.study import Cell, Study

FIGURES = ("redundancy", "redundancy_relative")
"""Figures of a study's adapters: `figures/<name>.{svg,png}`."""
WITHOUT = "without an adapter here"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MATRICES = ("A", "B", "BA")
TENSOR = re.compile(r".*?\.(\d+)\.(.+)\.mola_(A|B|router)(?:\.weight)?$")


def expert_differences(A: np.ndarray, B: np.ndarray, experts: int) -> dict[str, tuple[float, float]]:
    """(raw, relative) for A, B and BA of one module; nan where there is one expert, relative nan where all are zero.

    `A` is (experts * r, d_in) and `B` (d_out, experts * r), expert by expert. No d_out x d_in matrix is formed: with
    S = B^T B and T = A A^T, `<B_i A_i, B_j A_j>` is the sum over the r x r block (i, j) of S * T.
    """
    A, B = A.astype(np.float64), B.astype(np.float64)
    S, T = B.T @ B, A @ A.T
    blocks = {
        name: gram.reshape(experts, len(gram) // experts, experts, -1)
        for name, gram in {"A": T, "B": S, "BA": S * T}.items()
    }
    inner = {name: np.einsum("ipjp->ij", blocks[name]) for name in ("A", "B")}
    inner["BA"] = blocks["BA"].sum((1, 3))
    return {name: _mean_difference(inner[name]) for name in MATRICES}


def _mean_difference(inner: np.ndarray) -> tuple[float, float]:
    """From the experts' inner products, shape (experts, experts)."""
    squares = np.diag(inner)
    first, second = np.triu_indices(len(inner), 1)
    if not len(first):
        return float("nan"), float("nan")
    # Rounding can take the difference of equal experts below zero.
    raw = np.sqrt(np.maximum(squares[first] + squares[second] - 2 * inner[first, second], 0)).mean()
    norm = np.sqrt(squares).mean()
    return float(raw), float(raw / norm) if norm > 0 else float("nan")


def adapter_redundancy(folder: Path) -> pd.DataFrame:
    """Redundancy of each module of a saved MoLA adapter: layer, module, experts, matrix, raw, relative.

    Raises `MolaError` where the folder has no MoLA adapter.
    """
    file = folder / "adapter_model.safetensors"
    modules: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    try:
        with safe_open(file, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping
                place = TENSOR.match(key)
                if place:
                    modules.setdefault((int(place[1]), place[2]), {})[place[3]] = tensors.get_tensor(key)
    except FileNotFoundError:
        raise MolaError(f"{file}: no such file; train the cell, or bring its adapter here") from None
    if not modules:
        raise MolaError(f"{file}: no MoLA adapter")
    short = short_names(module for _, module in modules)
    named = {(layer, short[module]): parts for (layer, module), parts in modules.items()}
    rows = [
        (layer, module, len(parts["router"]), matrix, *values)
        for (layer, module), parts in sorted(named.items())
        for matrix, values in expert_differences(parts["A"], parts["B"], len(parts["router"])).items()
    ]
    return pd.DataFrame(rows, columns=["layer", "module", "experts", "matrix", "raw", "relative"])


def mola_cells(study: Study) -> list[Cell]:
    """Cells of the study that train experts: those of its tasks and, as in the paper, those of instruction tuning."""
    return [
        cell
        for cell in [*study.instruction_cells(), *study.cells()]
        if family_of(study.method_by_label[cell.method]).role == "routed"
    ]


def measure(layout: Layout) -> tuple[pd.DataFrame, LeftOut]:
    """Redundancy of every adapter of the study that is here, and the cells that are left out.

    Columns: task, method, seed and those of `adapter_redundancy`. Raises `MolaError` where there is no adapter.
    """
    frames = []
    trained = [cell for cell in mola_cells(layout.study) if not diverged(layout.weights(cell))]
    cells, left_out = with_file(
        layout,
        trained,
        lambda cell: layout.weights(cell) / "adapter_model.safetensors",
        WITHOUT,
        scores=False,
    )
    left_out[DIVERGED] = [cell for cell in mola_cells(layout.study) if cell not in trained]
    for cell in cells:
        frame = adapter_redundancy(layout.weights(cell))
        for position, (name, value) in enumerate(
            [("task", cell.task), ("method", cell.method), ("seed", cell.seed)]
        ):
            frame.insert(position, name, value)
        frames.append(frame)
    if not frames:
        raise MolaError(
            f"study {layout.study.name}: no MoLA adapter here that counts; train its cells, keeping the adapters. "
            + " ".join(told(left_out))
        )
    return pd.concat(frames, ignore_index=True), left_out


def write(layout: Layout) -> LeftOut:
    """Write the study's redundancy.csv and .parquet and draw `FIGURES`; returns the cells that are left out.

    Raises `MolaError` as `measure` does.
    """
    from mola_core.analysis.figures.adapters import save_adapter_figures
    from mola_core.analysis.figures.style import figure_style
    from mola_core.analysis.notices import notices

    frame, left_out = measure(layout)
    with atomic_write(layout.folder / "redundancy.csv") as temporary:
        frame.to_csv(temporary, index=False)
    with atomic_write(layout.folder / "redundancy.parquet") as temporary:
        frame.to_parquet(temporary, index=False)
    said = notices(layout.study) + told(left_out)
    with figure_style():
        figures = {
            "redundancy": draw(layout.study, frame, "raw"),
            "redundancy_relative": draw(layout.study, frame, "relative"),
        }
        save_adapter_figures(layout, figures, said)
    return left_out


def _curves(frame: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.Series]]:
    """For each module its mean over cells by layer (from 1), in the order of the model."""
    known = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
    modules = sorted(
        frame["module"].unique(),
        key=lambda name: (name not in known, known.index(name) if name in known else name),
    )
    for module in modules:
        curve = frame[frame["module"] == module].groupby("layer")[column].mean()
        curve.index += 1
        yield module, curve


def draw(study: Study, frame: pd.DataFrame, column: str):  # noqa: ANN201
    """Difference of the products BA by layer: a row for each method, attention on the left, the rest on the right.

    Mean over the cells (tasks and seeds) of the method. `column` is `raw` or `relative`.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from mola_core.analysis.figures.style import TEXT

    own = frame[frame["matrix"] == "BA"]
    methods = [label for label in study.method_by_label if (own["method"] == label).any()]
    sides = [own["module"].isin(ATTENTION), ~own["module"].isin(ATTENTION)]
    sides = [side for side in sides if side.any()]
    figure, axes = plt.subplots(
        len(methods),
        len(sides),
        figsize=(TEXT, 0.7 + 1.5 * len(methods)),
        squeeze=False,
        sharex=True,
        sharey="col",
    )
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    for side, column_axes in zip(sides, axes.T, strict=True):
        names = [name for name, _ in _curves(own[side], column)]
        for method, axis in zip(methods, column_axes, strict=True):
            for module, curve in _curves(own[side & (own["method"] == method)], column):
                axis.plot(
                    curve.index,
                    curve,
                    color=colours[names.index(module) % len(colours)],
                    marker="osv^D"[names.index(module) % 5],
                    markersize=2.5,
                    label=module,
                )
            axis.set_title(method)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        # Last, since the panels share their scale.
        column_axes[0].set_ylim(bottom=0)
        column_axes[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=4)
        column_axes[-1].set_xlabel("layer")
    unit = "" if column == "raw" else " / mean norm"
    figure.supylabel(f"mean difference of two experts' BA (Frobenius){unit}", fontsize=7.5)
    return figure
