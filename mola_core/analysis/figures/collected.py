"""A collected study, as its figures are drawn from it."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from mola_core.analysis.scores import ScoreMatrix
    from mola_core.runs.layout import Layout
    from mola_core.study.study import Study


@dataclasses.dataclass(frozen=True)
class Collected:
    """What `collect` wrote into `folder`. Each part raises `MolaError` where its file is missing or damaged."""

    layout: Layout
    folder: Path

    @property
    def study(self) -> Study:
        return self.layout.study

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row a cell."""
        from mola_core.analysis.collect import read_cells

        return read_cells(self.folder)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row a logged step of training."""
        from mola_core.analysis.collect import read_curves

        return read_curves(self.folder)

    @cached_property
    def matrix(self) -> ScoreMatrix:
        """The scores of all cells and documents."""
        from mola_core.analysis.score_files import load_scores
        from mola_core.analysis.scores import score_matrix

        return score_matrix(load_scores(self.folder / "scores.parquet"))

    @property
    def depth(self) -> int | None:
        """Layers of the base model; None where nothing here says it."""
        from mola_core.analysis.tables.accuracy import model_depth
        from mola_core.analysis.tables.parameters import layer_matrices

        return model_depth(self.cells, layer_matrices(self.layout.model))
