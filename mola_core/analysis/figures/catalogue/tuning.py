"""Figure: score of the tries against the learning rate, a line a method, the chosen rate marked; only where a study is tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mola_core.analysis.figures.drawing import legend_height, plain, shared_legend
from mola_core.analysis.figures.registry import FigureEntry, StudyData
from mola_core.analysis.reference.numbers import task_title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mola_core.analysis.figures.style import Style
    from mola_core.study.study import Study

PER_ROW = 3


def draw(data: StudyData) -> Figure | None:
    """A panel a task; with several alphas each has a line of its own, the lower the more broken."""
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import TEXT

    tried = data.tries
    if tried is None or tried.empty:
        return None
    tasks = [task for task in data.study.tasks if (tried["task"] == task).any()]
    looks = _looks(data.study)
    rates = sorted(tried["learning_rate"].unique())
    columns = min(PER_ROW, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(TEXT, 2.6 * rows + legend_height(len(looks))), squeeze=False, sharex=True
    )
    axes: list[Axes] = list(grid.flat)
    for axis in axes[len(tasks) :]:
        axis.set_axis_off()
    for axis, task in zip(axes, tasks, strict=False):
        here = tried[tried["task"] == task]
        for candidate in dict.fromkeys(here["method"]):
            _lines(axis, here[here["method"] == candidate], candidate, looks[candidate])
        axis.set_title(plain(task_title(task)))
        axis.set_xscale("log")
        # Plain numbers at the rates tried: a logarithmic axis writes its own labels as formulas, which are off here.
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.set_xticks([], minor=True)
        axis.margins(x=0.12)
        axis.set_xlabel("learning rate")
    for row in grid:
        row[0].set_ylabel(f"{data.study.tuning.score if data.study.tuning else 'score'} on validation")
    shared_legend(figure, axes[: len(tasks)])
    return figure


def _looks(study: Study) -> dict[str, Style]:
    """The look of each method that is tried: its own in the study, or by itself where it is tried for others."""
    from mola_core.analysis.figures.style import method_style, study_styles
    from mola_core.study.tries import tries, tries_study

    styles, own = study_styles(study), tries_study(study)
    assert own is not None
    return {
        attempt.candidate: styles.get(attempt.candidate) or method_style(own.method_by_label[label])
        for label, attempt in tries(study).items()
    }


def _lines(axis: Axes, tried: pd.DataFrame, candidate: str, look: Style) -> None:
    alphas = sorted(tried["alpha"].dropna().unique()) or [None]
    for place, alpha in enumerate(alphas):
        part = tried if alpha is None else tried[tried["alpha"] == alpha]
        # A rate at which one try diverged is no choice, so its others make no point either.
        means = part.groupby("learning_rate").agg(
            score=("score", lambda scores: scores.mean(skipna=False)), chosen=("chosen", "any")
        )
        label = candidate if place == 0 else None
        style = ("-", "--", "-.", ":")[min(place, 3)]
        axis.plot(means.index, means["score"], linestyle=style, label=label, **look.marker_options())  # type: ignore[arg-type]
        best = means[means["chosen"]]
        axis.plot(
            best.index, best["score"], "o", markersize=11, markerfacecolor="none", markeredgecolor="black",
            markeredgewidth=1.0,
        )  # fmt: skip


def caption(data: StudyData) -> str:
    tuning, tried = data.study.tuning, data.tries
    if tuning is None or tried is None or tried.empty:
        return ""
    diverged = int(tried["diverged"].sum())
    rates = tried["learning_rate"].min(), tried["learning_rate"].max()
    at_edge = list(dict.fromkeys(tried[tried["chosen"] & tried["learning_rate"].isin(rates)]["method"]))
    told = (
        f"{'Probability of the right option among the options' if tuning.score == 'likelihood' else 'Accuracy'} on "
        f"validation, mean over {len(tuning.seeds)} seed{'s' * (len(tuning.seeds) != 1)} that the study does not use, by "
        f"learning rate; circles mark what"
        f" was chosen, {'for each task' if tuning.per_task else 'by the mean over tasks'}. No interval is drawn."
    )
    if diverged:
        told += f" {diverged} of {len(tried)} tries diverged; rates with one have no point."
    if at_edge:
        told += f" At the edge of the rates tried: {', '.join(at_edge)}; a better rate may lie beyond."
    return told


FIGURE = FigureEntry("tuning", "study", 5, "Choice of the learning rates", draw, caption, always=False)
