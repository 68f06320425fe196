"""Figures are drawn for every kind of study, show the numbers, and are the same bytes each time."""

import dataclasses
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from simulated_study import make_study, simulate

from mola_core.analysis import collect
from mola_core.analysis.figures import registry
from mola_core.analysis.figures import study as figures
from mola_core.analysis.figures.catalogue import accuracy_parameters, experts_per_layer, training_loss
from mola_core.analysis.figures.drawing import KINDS
from mola_core.analysis.figures.style import figure_style, method_style, profile, study_styles
from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.scores import score_matrix
from mola_core.analysis.statistics.summaries import summarise_methods
from mola_core.errors import MolaError
from mola_core.methods.settings import MethodSettings
from mola_core.study.loading import load_study
from mola_core.study.sections import TuningSettings
from mola_core.study.verdict import VerdictSettings


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    layout = simulate(tmp_path_factory.mktemp("figures"), make_study(), documents=80)
    collect.write(layout)
    return layout


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(layout):
    return figures.study_data(layout, layout.folder)


def test_every_figure_is_written_twice_alike(layout, tmp_path):
    figures.write(layout)
    expected = {f"{name}.{kind}" for name, kind in itertools.product(figures.FIGURES, KINDS)}
    folder = layout.folder / "figures"
    assert {path.name for path in folder.iterdir()} == expected
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    figures.write(layout)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_emptied_table_of_tries_is_one_line(layout):
    study = layout.study.model_copy(update={"tuning": TuningSettings(learning_rates=[1e-4, 1e-3])})
    tries = layout.folder / "tuning.csv"
    tries.write_text("")
    with pytest.raises(MolaError, match=r"tuning.csv: cannot be read .*; run `mola tuning` again"):
        drawn(dataclasses.replace(layout, study=study))
    tries.unlink()


@pytest.mark.parametrize("methods", [["base"], ["base", "lora-r8"], ["mola-2468"]])
def test_small_studies_are_drawn(methods, tmp_path):
    layout = simulate(tmp_path, make_study(methods=methods, tasks=["cola"], seeds=[0]), documents=20)
    collect.write(layout)
    figures.write(layout)
    assert len(list((layout.folder / "figures").iterdir())) == 2 * len(figures.FIGURES)


def test_a_partial_study_is_drawn(tmp_path):
    layout = simulate(tmp_path, make_study(), documents=20)
    for task in layout.study.tasks[1:]:
        (layout.cell(layout.study.cell(task, "mola-2468", 0)) / "manifest.json").unlink()
        (layout.cell(layout.study.cell(task, "base", 0)) / "manifest.json").unlink()
    collect.write(layout, partial=True)
    figures.write(layout)
    assert (layout.folder / "figures" / "accuracy_parameters.png").stat().st_size > 0


def test_points_stand_at_the_tables_accuracies(layout):
    data = drawn(layout)
    cells = data.cells
    figure = accuracy_parameters.draw(data)
    panel = figure.axes[1]
    points = {container.get_label(): container.lines[0].get_ydata()[0] for container in panel.containers}
    expected = 100 * cells[cells.task == "cola"].groupby("method")["accuracy"].mean().drop("base")
    assert points == pytest.approx(expected.to_dict())
    assert panel.get_title() == "CoLA"


def test_an_interval_holds_documents_and_seeds(layout):
    matrix = drawn(layout).matrix
    value, low, high = accuracy_parameters.accuracies(matrix, "mola-2468", ["cola", "scienceqa"])
    assert low < value < high
    one_seed = matrix.blocks[0].contrast({"base": 1.0})
    mean = one_seed.mean()
    _, low, high = accuracy_parameters.accuracies(matrix, "base", [matrix.blocks[0].name])
    # One seed leaves the documents: the textbook interval of a mean.
    error = one_seed.std(ddof=1) / np.sqrt(one_seed.size)
    assert (high - low) / 2 == pytest.approx(1.99 * error, rel=0.01)
    assert (high + low) / 2 == pytest.approx(mean)


def test_noise_that_tasks_share_is_in_the_interval_of_their_mean():
    """One training that answers four tasks: the interval is that of the verdict's table of methods."""
    rng = np.random.default_rng(3)
    run = rng.normal(0, 0.08, 5)
    rows = [
        ("study", "model", task, "mola-2468", seed, str(document), rng.random() < 0.6 + run[seed])
        for task in "abcd"
        for seed in range(5)
        for document in range(100)
    ]
    names = ["study", "model", "task", "method", "seed", "document", "correct"]
    matrix = score_matrix(pd.DataFrame(rows, columns=names).astype({"correct": int}))
    blocks = [block.name for block in matrix.blocks]
    shared = accuracy_parameters.accuracies(matrix, "mola-2468", blocks, seeds_shared=True)
    alone = accuracy_parameters.accuracies(matrix, "mola-2468", blocks, seeds_shared=False)
    table = summarise_methods(matrix, VerdictSettings(), None, (), (), seeds_shared=True)["mola-2468"]
    assert [table["accuracy"], table["low"], table["high"]] == pytest.approx(
        [100 * value for value in shared]
    )
    assert shared[2] - shared[1] > 1.5 * (alone[2] - alone[1])


def test_a_size_that_data_decide_is_the_mean_of_the_cells(layout):
    data = drawn(layout)
    cells = data.cells.copy()
    ours = cells["method"] == "lora-r40"
    cells.loc[ours, "trainable_parameters"] = np.linspace(1_000, 3_000, ours.sum()).astype(int)
    figure = accuracy_parameters.draw(dataclasses.replace(data, cells=cells))
    assert "2 k" in [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_methods_of_one_size_share_a_group():
    sizes = {
        "lora-r64": 159_907_840,
        "mola-5555": 105_635_840,
        "mola-8888": 169_017_344,
        "mola-2468": 105_635_840,
    }
    groups = accuracy_parameters.size_groups(sizes)
    assert [group.methods for group in groups] == [["mola-5555", "mola-2468"], ["lora-r64"], ["mola-8888"]]
    assert groups[0].title == "105.6 M"


def test_shapes_are_as_wide_as_their_experts(layout):
    figure = experts_per_layer.draw(drawn(layout))
    shown = {
        axis.get_title().strip(): [bar.get_width() for bar in axis.patches]
        for axis in figure.axes
        if axis.get_visible()
    }
    assert shown == {"mola-2468": [2, 2, 4, 4, 6, 6, 8, 8], "mola-8642": [8, 8, 6, 6, 4, 4, 2, 2]}


def test_loss_curves_are_means_over_seeds(layout):
    curves = collect.read_curves(layout.folder)
    figure = training_loss.draw(drawn(layout))
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {"lora-r40", "lora-matched-2468", "mola-2468", "mola-8642"}
    own = curves[(curves.task == "cola") & (curves.method == "mola-2468")]
    smooth = own.groupby("step")["loss"].mean().rolling(10, min_periods=1).mean()
    assert lines["mola-2468"].get_ydata() == pytest.approx(smooth.to_numpy())


@pytest.mark.parametrize(
    "methods", [["base", "lora-r40", "mola-2468"], load_study("llama2-7b").method_by_label]
)
def test_no_words_overlap(methods, tmp_path):
    """Titles, tick labels, axis labels and legend keep clear of each other."""
    study = make_study(methods=list(methods), seeds=[0], tasks=list(reference.TASKS), data={"source": "hub"})
    layout = simulate(tmp_path, study, documents=20)
    collect.write(layout)
    data = drawn(layout)
    with figure_style():
        for figure in (
            accuracy_parameters.draw(data),
            training_loss.draw(data),
        ):
            figure.canvas.draw()
            for (first, one), (second, two) in itertools.combinations(words(figure), 2):
                assert not one.overlaps(two), f"{first!r} and {second!r}"


def words(figure):
    """Text and place of what stands outside the panels; turned tick labels overlap only as boxes and are left out."""
    texts = [axis.title for axis in figure.axes] + [axis.xaxis.label for axis in figure.axes]
    for axis in figure.axes:
        low, high = axis.get_xlim()
        ticks = [label for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high]
        texts += [label for label in ticks if not label.get_rotation()]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    renderer = figure.canvas.get_renderer()
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]


@pytest.mark.parametrize("name", ["quickstart", "smollm2", "llama2-7b"])
def test_all_methods_of_a_study_look_different(name):
    styles = study_styles(load_study(name))
    assert len(set(styles.values())) == len(styles)


def test_the_same_method_with_other_settings_looks_different():
    study = make_study(methods=["mola-2468", {"method": "mola-2468", "name": "wide", "rank": 16}])
    first, second = study_styles(study).values()
    assert (first.colour, first.marker) != (second.colour, second.marker)


def test_many_methods_of_one_look_are_told_apart_as_long_as_there_are_looks():
    methods = [f"random-20-{draw}" for draw in range(40)]
    styles = study_styles(make_study(methods=methods))
    assert len(styles) == 40
    assert len(set(styles.values())) == 25


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("5555", "uniform"), ("2468", "increasing"), ("6532", "decreasing"), ("8228", "hourglass")]
    + [("2882", "diamond"), ("2-10-2-2", "peak-2"), ("10-2-2-2", "peak-1"), ("2648", "other")],
)
def test_profiles(shape, expected):
    assert profile(shape) == expected


def test_a_matched_lora_is_hollow_in_its_shapes_colour():
    routed = method_style(MethodSettings(method="mola-2468"))
    plain = method_style(MethodSettings(method="lora-matched-2468"))
    assert (routed.colour, routed.marker) == (plain.colour, plain.marker)
    assert routed.filled and not plain.filled


def test_every_figure_is_registered_once_with_title_and_description(layout):
    figures.write(layout)
    assert len(set(registry.names("study")) | set(registry.names("verdict"))) == 6
    data = drawn(layout)
    for entry in registry.entries("study"):
        if not entry.always:
            continue  # there is nothing to show in this study
        svg = (layout.folder / "figures" / f"{entry.name}.svg").read_text(encoding="utf-8")
        assert f"<title>{entry.title}</title>" in svg and "<desc>" in svg and "Stand-in" in svg
        assert "<text" in svg, "text is text"
        assert str(len(data.study.seeds)) in entry.caption(data) or entry.name == "experts_per_layer"


def test_green_and_grey_differ_without_green_cones():
    """Machado, Oliveira & Fernandes 2009, deuteranopia, on linear RGB; distance in CIE lightness."""
    from matplotlib.colors import to_rgb

    def lightness(colour):
        channels = np.array(to_rgb(colour))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        seen = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]) @ linear
        return 116 * np.cbrt(np.array([0.2126, 0.7152, 0.0722]) @ seen) - 16

    green = method_style(MethodSettings(method="mola-8642")).colour
    grey = method_style(MethodSettings(method="base")).colour
    assert abs(lightness(green) - lightness(grey)) > 20
