"""Figures of the re-analysis: the forest plot with its combined rows, and the training losses by others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mola_core.analysis.paper.combined import Combined
from mola_core.analysis.paper.training_losses import SHAPES, LossSlope, runs, shape_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {
    "2468-vs-8642": ("2468 − 8642", ("2468", "8642")),
    "2468-vs-5555": ("2468 − 5555", ("2468", "5555")),
    "2882-vs-5555": ("2882 − 5555", ("2882", "5555")),
    "2356-vs-6532": ("2356 − 6532 (budget 16)", ("2356", "6532")),
    "depth-slope-16": ("Slope over budget 16, outermost shapes", ("upper layers", "lower layers")),
    "2468-vs-8888": ("2468 − 8888, which has 60 % more parameters", ("2468", "8888")),
    "mola-2468-vs-lora-r64": ("2468 − LoRA of rank 64, which has 51 % more", ("2468", "LoRA r64")),
}
SHORT_MODELS = {
    "Llama-2-7b": "LLaMA-2",
    "Mistral-7B": "Mistral",
    "Mistral-7B-v0.1": "Mistral",
    "Gemma-7b": "Gemma",
    "Llama-3.2-3B": "Llama 3.2 3B",
}
LIMIT = 5.0
FOREST_CAPTION = (
    "Thin line: 95 % interval over tasks, for tasks like these (drawn). Thick line: noise between seeds alone, on these very "
    "tasks and documents (fixed); Table 8 its own three seeds, every other row borrowed from Table 8. Diamond: the combined estimate of the paper's "
    "settings for these tasks (fixed), as wide as its 95 % interval; dotted line: where the true difference in another setting "
    "like these would lie. ‡ a number in it is doubtful; † second-hand. Every row is undecided after Holm's correction over all tests of "
    "all tables. Tables 1, 2, 3, 4, 7 and 9 and the reruns are one run a cell. Arrows: beyond the axis."
)
LOSS_CAPTION = (
    "Mean training loss of 102 runs of three epochs against the experts' centre of depth (0: all in the first layer, 1: in the last), as per cent above "
    "or below the mean of its task and budget. Lines: slope of log loss with the 95 % interval of the bootstrap over five tasks. One run a "
    "point. A training loss is no test score, and depth is confounded with the method that chose the shape."
)


def draw_reanalysis(rows: pd.DataFrame, combined: Mapping[str, Combined], folder: Path) -> None:
    """The forest plot, `reanalysis.svg` and `.png`: each main question, table by table, its combined row at the bottom."""
    from mola_core.analysis.figures.drawing import save_figure
    from mola_core.analysis.figures.forest import forest
    from mola_core.analysis.figures.style import TEXT, figure_style

    entries: list[dict[str, Any]] = []
    for question, (title, sides) in GROUPS.items():
        entries.append({"label": title, "sides": sides})
        entries += [_entry(row) for _, row in rows[rows["question"] == question].iterrows()]
        if question in combined:
            entries.append(_combined(combined[question]))
    with figure_style():
        figure = forest(
            entries,
            label="Difference in accuracy, mean over tasks (points)",
            width=TEXT,
            limit=LIMIT,
            intervals={
                "thin": "95 % over tasks: tasks like these",
                "thick": "95 % over seeds: these tasks",
                "diamond": "combined over the paper's settings, 95 %",
                "prediction": "95 % for another setting",
            },
        )
        save_figure(figure, folder / "reanalysis", "Differences in the published tables", FOREST_CAPTION)


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    keys = {"estimate": "estimate", "low": "low", "high": "high"}
    if pd.notna(row["seed_low"]):
        keys |= {"inner_low": "seed_low", "inner_high": "seed_high"}
    model = SHORT_MODELS.get(row["base_model"], f"{row['base_model']} model")
    return {
        "label": f"{row['source']}, {model}{row['mark']}",
        "answer": row["reading"],
        **{key: row[name] * row["reach"] for key, name in keys.items()},
    }


def _combined(row: Combined) -> dict[str, Any]:
    return {
        "label": f"Combined, {row.settings} settings (τ {row.tau:.2f})",
        "combined": True,
        "estimate": row.estimate,
        "low": row.low,
        "high": row.high,
        "predict_low": row.predict_low,
        "predict_high": row.predict_high,
    }


def draw_losses(slopes: Sequence[LossSlope], folder: Path) -> None:
    """The losses of others' runs, `training-losses.svg` and `.png`."""
    from mola_core.analysis.figures.drawing import heading, save_figure
    from mola_core.analysis.figures.style import figure_style

    with figure_style():
        figure = _losses(slopes)
        heading(figure, ["Training losses by others, one run a point: no test scores."])
        save_figure(
            figure, folder / "training-losses", "Training losses by others against depth", LOSS_CAPTION
        )


def _losses(slopes: Sequence[LossSlope]) -> Figure:
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.drawing import shared_legend
    from mola_core.analysis.figures.style import PROFILES, TEXT
    from mola_core.shapes import experts_per_layer

    every = runs()
    figure, panels = plt.subplots(1, 3, figsize=(TEXT, 3.3), gridspec_kw={"width_ratios": [1.2, 1.2, 1]})
    by_name = {row.name: row for row in slopes}
    profiles = dict(zip(SHAPES, ("increasing", "uniform", "decreasing"), strict=True))
    for axes, model, name in zip(
        panels, ("Mistral-7B-v0.1", "gemma-7b"), ("Mistral-7B, all", "Gemma-7B, all"), strict=False
    ):
        own = every[every["base_model"] == model]
        relative, centre = _within(own, "train_loss_mean", log=True), own["centre_of_depth"]
        axes.plot(
            centre,
            relative,
            linestyle="",
            marker=".",
            color="#8A8A8A",
            markersize=4,
            label="other shape, most of them chosen by data",
        )
        for shape, profile in profiles.items():
            named = own["experts"] == " ".join(map(str, experts_per_layer(shape, 32)))
            if named.any():
                colour, marker = PROFILES[profile]
                axes.plot(
                    centre[named], relative[named], linestyle="", marker=marker, color=colour, label=shape
                )
        row = by_name[name]
        ends = np.array([centre.min(), centre.max()])
        for value, look in (
            (row.slope, {"label": "slope"}),
            (row.low, {"linestyle": ":"}),
            (row.high, {"linestyle": ":"}),
        ):
            axes.plot(ends, value * (ends - centre.mean()), color="black", linewidth=1.0, **look)
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_title(
            f"{name.split(',')[0]}: {row.runs} runs\n{row.slope:+.1f} ({row.low:+.1f} to {row.high:+.1f})",
            loc="left",
        )
        axes.set_xlabel("experts' centre of depth")
    panels[0].set_ylabel("training loss, % from the mean\nof its task and budget")
    table = shape_losses()
    places = range(len(table))
    panels[2].barh(places, table["percent"], color=PROFILES["increasing"][0], height=0.55)
    panels[2].set_yticks(places, table["task"], fontsize=7)
    panels[2].invert_yaxis()
    panels[2].axvline(0, color="black", linewidth=0.6)
    panels[2].set_title("2468 against 8642,\nMistral, budget 20", loc="left")
    panels[2].set_xlabel("difference of the loss (%)")
    panels[2].grid(visible=False, axis="y")
    shared_legend(figure, panels[:2])
    return figure


def _within(frame: pd.DataFrame, column: str, log: bool) -> pd.Series:
    """Per cent from the mean of the runs of the same task and budget."""
    values = np.log(frame[column]) if log else frame[column]
    groups = values.groupby([frame["task"], frame["experts_total"]])
    return 100 * (values - groups.transform("mean"))


__all__ = [
    "FOREST_CAPTION",
    "GROUPS",
    "LOSS_CAPTION",
    "SHORT_MODELS",
    "draw_losses",
    "draw_reanalysis",
]
