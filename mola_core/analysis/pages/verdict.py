"""Writing a verdict: verdict.json, its page and figures, and the record of looks beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mola_core.analysis.looks import Record
from mola_core.analysis.score_files import load_scores
from mola_core.analysis.scores import ScoreMatrix, require_methods, score_matrix
from mola_core.analysis.statistics.decide import decide
from mola_core.analysis.statistics.records import Verdict
from mola_core.errors import MolaError
from mola_core.files import read_json, sha256_file, write_json, write_text
from mola_core.study.verdict import VerdictSettings


def write_verdict(
    scores: str | Path,
    out: str | Path,
    settings: VerdictSettings | None = None,
    *,
    shapes: Mapping[str, Sequence[float] | None] | None = None,
    parameters: Mapping[str, int] | None = None,
    floors: Mapping[str, float] | None = None,
    first_cell: str | None = None,
    stated_of: tuple[Sequence[str], Sequence[int]] = ((), ()),
    record: Path | None = None,
    stand_in: bool = False,
    seeds_shared: bool = True,
    by_itself: bool = False,
    notices: Sequence[str] = (),
) -> Verdict:
    """Write verdict.json, verdict.md, figures/ and tables/questions.* into `out` for a score file; returns the verdict.

    The look is added to the record there (`looks.FILE`), or in the folder `record`. `parameters` (method -> trainable parameters) are noted beside
    the methods; `floors` are as `decide` takes them; `first_cell` is when a study's first cell was finished (ISO
    8601), without which nothing is said to have been stated beforehand, and `stated_of` the study's tasks and seeds; `stand_in` marks results of built-in rows or a
    random model, `notices` stand on figures and tables; `seeds_shared` is as `decide` takes it. For a file `by_itself`, without a
    study, a pair of which a method is not in the scores is an error, and so is an `out` with the verdict of other data. Same file, same settings, same
    record: same bytes. Raises `MolaError` for a score file that is not one.
    """
    from mola_core.analysis.figures import verdict as drawing
    from mola_core.analysis.pages.verdict_text import verdict_page
    from mola_core.analysis.tables.questions import write_questions

    scores, out = Path(scores), Path(out)
    settings = settings or VerdictSettings()
    matrix = score_matrix(load_scores(scores))
    if by_itself:
        require_methods(matrix, settings.pairs)
        _refuse_other_data(matrix, out)
    known = {"shapes": shapes, "floors": floors, "seeds_shared": seeds_shared}
    verdict = decide(matrix, settings, **known)
    looks = Record(record or out)
    look = looks.count(verdict)
    beforehand = looks.stated_beforehand(settings, first_cell, *stated_of)
    if look > 1 or beforehand:
        verdict = decide(matrix, settings, look=look, stated_beforehand=beforehand, **known)
    verdict |= {"stand_in": stand_in, "scores_sha256": sha256_file(scores)}
    for method, row in verdict["methods"].items():
        row["parameters"] = (parameters or {}).get(method)
    page = verdict_page(verdict)
    write_json(out / "verdict.json", verdict)  # before the rest: it refuses numbers that JSON lacks
    looks.add_look(verdict)
    write_text(out / "verdict.md", page)
    drawing.draw_verdict(verdict, out / "figures", notices)
    write_questions(verdict, out / "tables", notices)
    return verdict


def _refuse_other_data(matrix: ScoreMatrix, out: Path) -> None:
    """Raise `MolaError` where `out` holds a verdict on other data: it would be lost, and these taken for a second look at those."""
    path = out / "verdict.json"
    if not path.is_file():
        return
    data = read_json(path)["data"]
    tasks = {block.name for block in matrix.blocks}
    same = data["studies"] == list(matrix.studies) and data["models"] == list(matrix.models)
    if not same or not {*data["tasks"]} <= tasks:
        raise MolaError(
            f"--out: {out} holds the verdict on other scores (study {', '.join(data['studies'])}, model {', '.join(data['models'])}, tasks "
            f"{', '.join(data['tasks'])}); name another folder"
        )
