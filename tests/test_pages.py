"""The page of a study and the sentence of an answer: answer first, nothing of others runs, nothing of the machine leaks."""

import copy
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from drawn_scores import FAST, draw, with_likelihood
from matplotlib.text import Text
from simulated_study import make_study, simulate

from mola_core.analysis import collect
from mola_core.analysis.experts import knock_out, quality, redundancy, routing
from mola_core.analysis.figures import study as figures
from mola_core.analysis.figures.catalogue import (
    verdict_depth,
    verdict_forest,
    verdict_likelihood,
    verdict_ranks,
)
from mola_core.analysis.figures.verdict import draw_verdict
from mola_core.analysis.pages import study_page, summary
from mola_core.analysis.pages.answer import answer_sentence, beside_sentences, change_sentence, told
from mola_core.analysis.pages.html import markdown_html
from mola_core.analysis.pages.verdict import write_verdict
from mola_core.analysis.pages.verdict_text import verdict_page
from mola_core.analysis.statistics.decide import decide
from mola_core.analysis.tables.questions import questions_latex, shown_questions, write_questions
from mola_core.analysis.tables.render import latex_text, markdown_text
from mola_core.cli import main
from mola_core.runs.adapter_figures import ADAPTER_FIGURES
from mola_core.runs.layout import Layout
from mola_core.study.study import Study


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    hostile = "a <script>alert(1)</script> & ![x](/etc/passwd) $\\frac{$"
    layout = simulate(tmp_path_factory.mktemp("pages"), make_study(description=hostile), documents=60)
    collect.write(layout)
    figures.write(layout)
    write_verdict(layout.folder / "scores.parquet", layout.folder, layout.study.verdict, stand_in=True)
    summary.write(layout)
    study_page.write(layout)
    return layout


@pytest.fixture
def verdict(layout):
    return json.loads((layout.folder / "verdict.json").read_text(encoding="utf-8"))


def test_the_answer_comes_first_and_the_page_needs_no_network(layout, verdict):
    page = (layout.folder / "index.html").read_text(encoding="utf-8")
    places = [page.index(words) for words in ("Stand-in data", 'class="answer"', 'id="verdict-forest"')]
    places += [
        page.index(words)
        for words in ('id="accuracy_parameters"', "What would change it", "<h2>Every question")
    ]
    assert places == sorted(places)
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "<script>alert" not in page and page.count("<script") == 1
    assert "root:" not in page
    assert answer_sentence(verdict).replace("−", "-") in told(layout).replace("−", "-")
    text = (layout.folder / "summary.md").read_text(encoding="utf-8")
    assert "![x]" not in text and text.index("## Answer") < text.index("## What was run")


@pytest.mark.parametrize("changed", ["scores", "settings"])
def test_a_verdict_on_other_scores_or_settings_is_no_answer(layout, verdict, tmp_path, changed):
    folder = tmp_path / layout.folder.name
    shutil.copytree(layout.folder, folder)
    study = layout.study
    if changed == "scores":
        scores = pd.read_parquet(folder / "scores.parquet")
        scores[scores.document != scores.document.iloc[0]].to_parquet(folder / "scores.parquet")
    else:
        study = study.model_copy(update={"verdict": study.verdict.model_copy(update={"margin": 3.0})})
    later = Layout(study, tmp_path)
    assert later.folder == folder
    summary.write(later)
    study_page.write(later)
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "No verdict of these scores and settings" in page and 'class="answer"' not in page
    assert "## Answer" not in (folder / "summary.md").read_text(encoding="utf-8")
    assert "the verdict there is of other scores or settings" in told(later)


@pytest.mark.parametrize(
    ("answer", "estimate", "low", "high", "words"),
    [
        ("supported", 1.2, 0.3, 2.1, "Supported: 2468 beats 8642 by 1.20 points"),
        ("contradicted", -1.2, -2.1, -0.3, "Contradicted: 2468 is behind 8642 by 1.20 points"),
        ("equivalent", 0.1, -0.3, 0.5, "Equivalent: 2468 and 8642 differ by less than 1 point "),
        ("undecided", 0.4, -0.5, 1.3, "Undecided: 2468 − 8642 is +0.40 points"),
        ("undecided", 0.0, 0.0, 0.0, "gave the same answers to every document"),
    ],
)
def test_each_answer_in_plain_words(verdict, answer, estimate, low, high, words):
    changed = copy.deepcopy(verdict)
    changed["headline"] = "2468-vs-8642"
    question = next(q for q in changed["questions"] if q["id"] == "2468-vs-8642")
    question |= {"answer": answer, "estimate": estimate, "low": low, "high": high, "margin": 1.0}
    assert words in answer_sentence(changed)
    assert change_sentence(changed)
    if not high:
        assert "would be missed" not in change_sentence(changed)


def test_the_sentence_counts_what_is_in_it():
    floors = {"task2": 0.7, "task0": 0.1, "task1": 0.1}
    rows = draw(seed=9, depth=12)
    rows = rows[(rows.method != "mola-2468") | (rows.seed > 0)]
    left = decide(rows, FAST, floors=floors, least_gain=1.0)
    assert "task0, task1; 700 documents, 2 seeds a task" in answer_sentence(left)
    page = verdict_page(left | {"stand_in": False})
    assert "the questions leave out task2" in page
    for caption in (verdict_forest.caption, verdict_likelihood.caption, verdict_depth.caption):
        assert "task0, task1; 700 documents" in caption(left) and "left out: task2" in caption(left)
    title = verdict_forest.draw(left).findobj(Text)
    assert any("700 documents" in text.get_text() and "left out: task2" in text.get_text() for text in title)
    assert "700 documents" in questions_latex(left, ())
    every = decide(rows, FAST)
    assert "900 documents, 2 seeds a task" in answer_sentence(every)
    also = "over all tasks, task2 too, which the questions leave out"
    assert also in verdict_ranks.caption(left) and also in page and also in study_page.methods_table(left)
    for text in (verdict_ranks.caption(every), verdict_page(every), study_page.methods_table(every)):
        assert "leave out" not in text


def test_a_slope_is_a_line_unless_it_is_a_pair():
    rows = draw(seed=0, depth=12).replace({"method": {"mola-8228": "mola-4466", "mola-2882": "mola-6644"}})
    stated = {"hypotheses": ("depth-slope",)}
    line = answer_sentence(decide(rows, FAST, **stated))
    assert line.startswith("Supported: the line through all shapes, from 8642 to 2468, rises by ")
    three = rows[rows.method.isin(["mola-2468", "mola-5555", "mola-8642"])]
    assert answer_sentence(decide(three, FAST, **stated)).startswith("Supported: 2468 beats 8642 by ")
    # Of the shapes in the line, whichever of them lack a task.
    less = rows[(rows.method != "mola-8642") | (rows.task != "task1")]
    assert "from 8642 to 2468" in answer_sentence(decide(less, FAST, **stated))


def test_equivalence_shows_the_interval_that_decides_it():
    verdict = decide(draw(seed=2), FAST, margin=30.0)
    inner = next(q for q in verdict["questions"] if q["id"] == verdict["headline"])["inner"]
    sentence = answer_sentence(verdict)
    assert "Equivalent" in sentence and f"90 % interval {inner['low']:+.2f}".replace("-", "−") in sentence


def test_what_was_not_stated_is_called_exploratory():
    rows = draw(seed=0, depth=12)
    assert answer_sentence(decide(rows[rows.method != "mola-2468"], FAST)).startswith("Exploratory. ")


def test_a_verdict_elsewhere_is_a_look_at_the_study(layout, tmp_path, monkeypatch):
    options = ["--study", str(layout.root / "study.yaml"), "--results", str(layout.root)]
    content = layout.study.model_dump(mode="json", exclude_none=True)
    (layout.root / "study.yaml").write_text(yaml.safe_dump(content))
    before = (layout.folder / "looks.jsonl").read_text()
    (layout.folder / "looks.jsonl").unlink()
    assert main(["verdict", *options, "--out", str(tmp_path / "elsewhere")]) == 0
    looked = layout.folder / "looks.jsonl"
    assert '"look"' in looked.read_text() and not (tmp_path / "elsewhere/looks.jsonl").exists()
    for shared in (False, True):
        monkeypatch.setattr(Study, "seeds_shared", shared)
        assert main(["verdict", *options, "--out", str(tmp_path / "elsewhere")]) == 0
        assert json.loads((tmp_path / "elsewhere/verdict.json").read_text())["seeds_shared"] == shared
    looked.write_text(before)


def test_both_endpoints_are_shown_where_a_verdict_has_them(verdict, tmp_path):
    draw_verdict(verdict, tmp_path / "figures")
    assert (tmp_path / "figures/verdict-likelihood.svg").is_file()
    assert "By likelihood (exploratory)" in " ".join(beside_sentences(verdict))
    one = copy.deepcopy(verdict)
    one["questions"] = [question for question in one["questions"] if question["endpoint"] == "accuracy"]
    draw_verdict(one, tmp_path / "figures")
    assert not (tmp_path / "figures/verdict-likelihood.svg").exists(), (
        "one of an earlier verdict is taken away"
    )
    assert "likelihood" not in " ".join(beside_sentences(one))


def test_what_bears_on_the_answer_stands_beside_it(verdict):
    changed = copy.deepcopy(verdict)
    question = next(q for q in changed["questions"] if q["id"] == changed["headline"])
    question |= {
        "answer": "supported",
        "within_margin": True,
        "margin": 1.5,
        "estimate": 1.0,
        "low": 0.6,
        "high": 1.4,
    }
    question["reach"] = 0.5
    question["drawn"] = {"low": -6.5, "high": 9.0, "p": 0.6, "p_equivalence": 0.8}
    question["worth"], changed["exchange"] = 5.0, {"rate": 5.0, "r": 0.9, "runs": 24}
    changed["looks"] = {"planned": 1, "taken": 2, "level": 0.05, "stated_beforehand": True}
    assert "smaller than the margin of 1.5" in answer_sentence(changed)
    told_beside = " ".join(beside_sentences(changed))
    for words in (
        "−3.25 to +4.50",
        "Over the 24 runs here +0.50 points of probability go with +2.50 points",
        "Stated before the first cell",
        "look 2 of 1",
        "a hint, not a test",
    ):
        assert words in told_beside


def test_stated_questions_come_first():
    verdict = decide(
        with_likelihood(draw(seed=3, depth=6)), FAST, hypotheses=("2468-vs-8642",), endpoint="likelihood"
    )
    shown = shown_questions(verdict)
    assert set(shown["Question"][:2]) == {"2468-vs-8642:likelihood", "depth-slope:likelihood"}
    places = shown["Endpoint"].tolist()
    assert places == sorted(places, reverse=True) and len(set(places)) == 2
    assert sorted(shown["Question"]) == sorted(question["id"] for question in verdict["questions"])


def test_names_of_others_are_text_in_the_verdict(verdict):
    changed = json.loads(json.dumps(verdict).replace("mola-2468", "# <b>x</b> | ![i](/etc/passwd)"))
    page = verdict_page(changed)
    assert "<b>" not in page.replace(r"\<b\>", "") and "![i]" not in page and "| ![" not in page
    shown = markdown_html(page, Path("."))
    assert "<b>" not in shown and shown.count("<h1>") == 1


def test_markdown_of_others_shows_no_file_and_runs_nothing(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/there.svg").write_text('<svg width="72pt"></svg>')
    (tmp_path / "figures/leak.svg").symlink_to("/etc/hostname")
    text = "![a](figures/there.svg) ![b](/etc/passwd) ![c](figures/none.png) ![d](https://x.y/z.png) ![e](figures/leak.svg)"
    page = markdown_html(text + " <script>alert(1)</script> [m](other.md)", tmp_path)
    assert page.count("<img") == 1 and page.count("figure not here") == 4
    assert "<script>" not in page and "href" not in page


def test_texts_of_others_are_texts():
    assert markdown_text("# a\n![x](y) <b>|") == r"\# a \!\[x\](y) \<b\>\|"
    assert latex_text("a_b\\input{x}") == r"a\_b\textbackslash{}input\{x\}"


def test_questions_are_inert_in_a_spreadsheet(verdict, tmp_path):
    changed = copy.deepcopy(verdict)
    changed["questions"][0]["claim"] = "=HYPERLINK(1)"
    write_questions(changed, tmp_path, ["Limited run."])
    assert ",'=HYPERLINK" in (tmp_path / "questions.csv").read_text()
    latex = (tmp_path / "questions.tex").read_text()
    assert "siunitx" in latex and r"\toprule" in latex and "Limited run." in latex


def test_every_figure_of_adapters_has_its_words():
    drawn = [name for part in (knock_out, quality, redundancy, routing) for name in part.FIGURES]
    assert sorted(ADAPTER_FIGURES) == sorted(drawn)
