"""Scores from lm-eval's own sample files, written by lm-eval itself: what is read, what is told, what is refused."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from task_rows import write_split
from test_fair_questions import arc, prepared

from mola_core.analysis.lm_eval_samples import runs_by_pattern
from mola_core.analysis.score_files import load_scores
from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.evaluation.likelihoods import LETTERS
from mola_core.study.sections import DirectoryData
from mola_core.tasks import load_task
from mola_core.tasks.rows import prepare_task

DOCUMENTS = 12


class Drawn(LM):
    """Log-likelihoods drawn with a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = np.random.default_rng(seed)

    def loglikelihood(self, requests, **_):
        return [(float(self.random.normal(-3, 1)), False) for _ in requests]

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    generate_until = loglikelihood_rolling


def write_run(folder: Path, task, name: str, seed: int) -> Path:
    """Evaluate `task` with drawn answers and let lm-eval write its samples; the file."""
    outcome = evaluator.evaluate(Drawn(seed), {name: task}, bootstrap_iters=0, log_samples=True)
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = "a__model"
    tracker.date_id = "2026-11-24T10-00-00.123456"
    tracker.save_results_samples(name, outcome["samples"][name])
    (file,) = folder.rglob(f"samples_{name}_*.jsonl")
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two methods, two seeds, three tasks: answers by number, by text, and options in the prompt."""
    root = tmp_path_factory.mktemp("runs")
    rows = [arc(f"q{n}?", n % 3, ("a", "b", "c")) for n in range(DOCUMENTS)]
    loaded = {"arc_easy": load_task("arc_easy", "choice", prepared(root / "arc", rows, rows))}
    sentences = [
        {
            "sentence": f"Ann met Bea, so _ waved {n}.",
            "option1": "Ann",
            "option2": "Bea",
            "answer": "12"[n % 2],
        }
        for n in range(DOCUMENTS)
    ]
    for split in ("train", "validation"):
        write_split(root / "wino", "winogrande/winogrande_xl", split, sentences)
    source = DirectoryData(source="directory", root=str(root / "wino"))
    prepare_task("winogrande", source, root / "wino" / "rows")
    loaded["winogrande"] = load_task("winogrande", "choice", root / "wino" / "rows")
    for place, method in enumerate(("mine", "theirs")):
        for seed in (0, 1):
            for name, task in loaded.items():
                write_run(root / "out" / method / f"seed{seed}", task, name, 10 * place + seed)
    return root / "out"


PATTERN = "{method}/seed{seed}/*/{file}"


def imported(out: Path, *arguments: object) -> int:
    return main(["import", *map(str, arguments), "--out", str(out)])


def test_samples_of_many_runs_become_one_score_matrix(runs, tmp_path, capsys):
    out = tmp_path / "scores.parquet"
    assert imported(out, runs, "--pattern", PATTERN) == 0
    frame = load_scores(out)
    assert len(frame) == 2 * 2 * 2 * DOCUMENTS
    for (task, method, seed), cell in frame.groupby(["task", "method", "seed"], observed=True):
        (file,) = (runs / method / f"seed{seed}").rglob(f"samples_{task}_*")
        lines = {line["doc_hash"]: line for line in map(json.loads, file.read_text().splitlines())}
        for row in cell.itertuples():
            line = lines[row.document]
            values = [float(answer[0]) for answer in line["filtered_resps"]]
            assert row.correct == line["acc"]
            if task == "arc_easy":
                right = int(line["target"])
            else:  # two options: what was taken is right, or the other one
                right = int(np.argmax(values)) if line["acc"] else int(np.argmin(values))
            assert row.likelihood == pytest.approx(np.exp(values[right]) / np.exp(values).sum(), rel=1e-5)
    assert "4 runs" not in capsys.readouterr().err
    assert (
        main(["verdict", "--scores", str(out), "--pair", "mine", "theirs", "--out", str(tmp_path / "v")]) == 0
    )
    assert json.loads((tmp_path / "v" / "verdict.json").read_text())
    for row in pq.read_table(out).to_pylist():
        if row["task"] == "arc_easy":
            (file,) = (runs / row["method"] / f"seed{row['seed']}").rglob("samples_arc_easy_*")
            lines = {line["doc_hash"]: line for line in map(json.loads, file.read_text().splitlines())}
            line = lines[row["document"]]
            right = float(line["filtered_resps"][int(line["target"])][0])
            assert row["log_likelihood"] == pytest.approx(right, rel=1e-5)


def test_a_table_says_what_paths_do_not(runs, tmp_path, capsys):
    lines = ["file, method, seed, task"]
    for place, file in enumerate(sorted(runs.rglob("samples_arc_easy_*"))):
        shutil.copy(file, tmp_path / f"{place}.jsonl")
        lines.append(f"{place}.jsonl, m{place} , 7, quiz")
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    assert imported(tmp_path / "scores.parquet", "--runs", tmp_path / "runs.csv") == 0
    frame = load_scores(tmp_path / "scores.parquet")
    assert set(frame["method"]) == {"m0", "m1", "m2", "m3"}
    assert set(frame["seed"]) == {7} and set(frame["task"]) == {"quiz"}
    (tmp_path / "runs.csv").write_text("file,method,seed,method\n0.jsonl,a,7,b\n")
    assert imported(tmp_path / "twice.parquet", "--runs", tmp_path / "runs.csv") == 2
    assert "two columns 'method'; remove one" in capsys.readouterr().err


def changed(runs: Path, tmp_path: Path, change) -> Path:
    """A copy of the ARC samples, of which `change` has altered the first file's documents."""
    for file in runs.rglob("samples_arc_easy_*"):
        copy = tmp_path / "runs" / file.relative_to(runs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    first = min((tmp_path / "runs").rglob("*.jsonl"))
    samples = [json.loads(line) for line in first.read_text().splitlines()]
    samples = change(samples) or samples
    first.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))
    return tmp_path / "runs"


def drop(*names):
    def change(samples):
        for sample in samples:
            for name in names:
                del sample[name]

    return change


def each(**values):
    def change(samples):
        for sample in samples:
            sample.update(values)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda samples: samples[1:], r"task arc_easy: 12 documents, of which 11 are among the 11 of"),
        (lambda samples: samples + samples[:1], "doc_id 0 stands twice"),
        (lambda samples: [{"run_info": {}, "train_info": {}}], "PEFT's method_comparison: .* no documents"),
        (each(acc=0.5), "acc is 0.5, not 0 or 1; choose one with --metric: acc_norm"),
        (drop("acc"), "acc has no such metric"),
        (drop("doc_id"), "no sample of lm-eval"),
        (each(doc_id="a1"), "line 1 is no sample of lm-eval .no number doc_id"),
        (
            lambda samples: samples + [sample | {"filter": "strict"} for sample in samples],
            r"by 2 filters \(none, strict\); choose one with --filter",
        ),
        (each(doc_hash="0" * 64), "of which 0 are among"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(runs, tmp_path, capsys, change, words):
    folder = changed(runs, tmp_path, change)
    assert imported(tmp_path / "scores.parquet", folder, "--pattern", PATTERN) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "scores.parquet").exists()


def test_one_accuracy_a_run_is_told_apart_from_a_damaged_file(tmp_path, capsys):
    """PEFT writes its results over many lines."""
    file = tmp_path / "mine" / "seed0" / "samples_gsm8k.jsonl"
    file.parent.mkdir(parents=True)
    result = {"run_info": {"peft_config": {}}, "train_info": {"metrics": [{"test accuracy": 0.4}]}}
    for text, words in (
        (json.dumps(result, indent=2), "PEFT's method_comparison"),
        ("{\n}", "not whole lines"),
    ):
        file.write_text(text)
        assert imported(tmp_path / "scores.parquet", file, "--pattern", "{method}/seed{seed}/{file}") == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


def test_a_table_that_is_a_pipe_does_not_hang(tmp_path, capsys):
    os.mkfifo(tmp_path / "runs.csv")
    assert imported(tmp_path / "scores.parquet", "--runs", tmp_path / "runs.csv") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_matter(runs, tmp_path):
    folder = changed(runs, tmp_path, lambda _: None)
    first = min(folder.rglob("*.jsonl"))
    first.write_bytes(b"\xef\xbb\xbf" + first.read_bytes().replace(b"\n", b"\r\n"))
    assert imported(tmp_path / "scores.parquet", folder, "--pattern", PATTERN) == 0


def some(number, **values):
    """Alters one document."""

    def change(samples):
        samples[number].update(values)

    return change


def shifted(samples):
    for sample in samples:
        sample["target"] = str((int(sample["target"]) + 1) % 3)


def one_unknown(samples):
    missed = next(sample for sample in samples if not sample["acc"])
    missed["target"] = "unknown"


def twins(samples):
    """The last option is the first one's text, and answers are given as text."""
    for sample in samples:
        arguments = sample["arguments"]
        arguments["gen_args_2"]["arg_1"] = arguments["gen_args_0"]["arg_1"]
        sample["target"] = arguments[f"gen_args_{sample['target']}"]["arg_1"].strip()


def only_the_first(samples):
    for sample in samples:
        sample["arguments"] = {"gen_args_0": sample["arguments"]["gen_args_0"]}
        sample["filtered_resps"] = sample["filtered_resps"][:1]
        sample |= {"target": "0", "acc": 1}


def one_hit_untold(samples):
    next(sample for sample in samples if sample["acc"])["acc"] = None


def one_answer_more(samples):
    samples[3]["filtered_resps"] = [*samples[3]["filtered_resps"], [-99.0, False]]


def two_letters(samples):
    for sample in samples:
        place = int(sample["target"])
        sample["target"] = LETTERS[place : place + 2]


@pytest.mark.parametrize(
    "change",
    [
        *(drop("target"), drop("arguments"), each(acc="1"), each(filtered_resps=[]), each(filtered_resps=None)),
        *(each(filtered_resps=[[], [], []]), each(filtered_resps=["x", "y", "z"])),
        *(each(arguments=None), some(3, arguments=[]), some(3, acc=None), some(3, filtered_resps=[[-1, False]])),
        some(3, filtered_resps=[[float("-inf"), False], [-1, False], [-1, False]]),
        *(each(target="3", acc=0), each(target="Z", acc=0), each(target="é", acc=0), each(target="-1", acc=0)),
        *(shifted, one_unknown, twins, only_the_first, two_letters, one_hit_untold, one_answer_more),
    ],
)  # fmt: skip
def test_likelihoods_that_files_do_not_tell_are_left_out(runs, tmp_path, capsys, change):
    folder = changed(runs, tmp_path, change)
    options = ("--pattern", PATTERN, "--metric", "acc_norm")
    assert imported(tmp_path / "scores.parquet", folder, *options) == 0
    assert "task arc_easy: no likelihoods" in capsys.readouterr().err
    assert load_scores(tmp_path / "scores.parquet")["likelihood"].isna().sum() == DOCUMENTS


def listed(samples):
    """As lm-eval wrote requests before they had names."""
    for sample in samples:
        sample["arguments"] = [[one["arg_0"], one["arg_1"]] for one in sample["arguments"].values()]


def asked_without_prompt(samples):
    """What acc_mutual_info adds: each option once more, by itself."""
    for sample in samples:
        options = sample["arguments"].values()
        sample["arguments"] = [[one["arg_0"], one["arg_1"]] for one in options]
        sample["arguments"] += [["", one["arg_1"]] for one in options]
        sample["filtered_resps"] += [[5.0, False]] * len(options)
        sample["metrics"] = ["acc", "acc_mutual_info"]


def asked_without_prompt_of_old(samples):
    """As older versions of lm-eval, which list no metrics."""
    asked_without_prompt(samples)
    for sample in samples:
        del sample["metrics"]
        sample["acc_mutual_info"] = 0.0


def blank(samples):
    for sample in samples:
        sample["target"] = f" {sample['target']} "


@pytest.mark.parametrize("change", [listed, asked_without_prompt, asked_without_prompt_of_old, blank])
def test_likelihoods_are_the_same_however_they_are_written(runs, tmp_path, change):
    tables = []
    for name, apply in (("plain", lambda _: None), ("changed", change)):
        folder = changed(runs, tmp_path / name, apply)
        assert imported(tmp_path / f"{name}.parquet", folder, "--pattern", PATTERN) == 0
        tables.append(pq.read_table(tmp_path / f"{name}.parquet").to_pandas())
    assert tables[0].equals(tables[1])
    assert tables[0]["likelihood"].notna().all()


def test_other_prompts_and_missing_likelihoods_are_told(runs, tmp_path, capsys):
    folder = changed(runs, tmp_path, each(prompt_hash="other"))
    assert imported(tmp_path / "scores.parquet", folder, "--pattern", PATTERN) == 0
    assert f"asked in other words than mine in {DOCUMENTS} of {DOCUMENTS}" in capsys.readouterr().err
    folder = changed(runs, tmp_path / "again", each(target="unknown"))
    assert imported(tmp_path / "again.parquet", folder, "--pattern", PATTERN) == 0
    assert "task arc_easy: no likelihoods" in capsys.readouterr().err
    frame = load_scores(tmp_path / "again.parquet")
    assert frame["likelihood"].isna().sum() == DOCUMENTS


@pytest.mark.parametrize(
    ("target", "read"), [(lambda number: LETTERS[number], True), (lambda number: "abc"[number], True)]
)
def test_targets_by_letter_and_by_text_are_read(runs, tmp_path, target, read):
    def rename(samples):
        for sample in samples:
            sample["target"] = target(int(sample["target"]))

    plain = imported(
        tmp_path / "plain.parquet", changed(runs, tmp_path / "plain", lambda _: None), "--pattern", PATTERN
    )
    renamed = imported(
        tmp_path / "renamed.parquet", changed(runs, tmp_path / "renamed", rename), "--pattern", PATTERN
    )
    assert plain == renamed == 0
    first, second = (load_scores(tmp_path / f"{name}.parquet") for name in ("plain", "renamed"))
    assert np.array_equal(first["likelihood"], second["likelihood"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{method}/{file}", "lacks {seed}"),
        ("s{seed}/{file}", "lacks {method}"),
        ("{method}/{methode}/seed{seed}", "at most once"),
        ("{method}/{method}/seed{seed}/{file}", "at most once"),
        ("{method}/run{seed}/*/{file}", "does not end as --pattern"),
    ],
)
def test_patterns_that_do_not_say_enough_are_refused(runs, pattern, words):
    with pytest.raises(MolaError, match=words):
        runs_by_pattern(sorted(runs.rglob("*.jsonl")), pattern)


def test_a_cell_that_stands_twice_names_both_files(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path / "runs")
    for file in list((tmp_path / "runs").rglob("samples_arc_easy_*")):
        shutil.copy(file, file.with_name(file.name.replace("10-00", "11-00")))
    assert imported(tmp_path / "scores.parquet", tmp_path / "runs", "--pattern", PATTERN) == 2
    assert "task arc_easy, method mine, seed 0 is that of" in capsys.readouterr().err


def test_one_file_is_one_run_and_fields_have_something_between(runs, tmp_path, capsys):
    (file, *_) = sorted(runs.rglob("samples_arc_easy_*"))
    shutil.copy(file, tmp_path / "a.jsonl")
    (tmp_path / "runs.csv").write_text("file,method,seed,task\na.jsonl,m,0,quiz\na.jsonl,m,1,quiz\n")
    assert imported(tmp_path / "scores.parquet", "--runs", tmp_path / "runs.csv") == 2
    assert "a.jsonl: named twice, as m, seed 0 and as m, seed 1" in capsys.readouterr().err
    for pattern in ("{method}{seed}/{file}", "{method}/*{seed}/{file}"):
        with pytest.raises(MolaError, match="with nothing between"):
            runs_by_pattern([file], pattern)


def test_documents_without_lm_evals_hash_are_told_apart_by_content(runs, tmp_path):
    def other(samples):
        for sample in samples:
            sample.pop("doc_hash")
            sample["doc"] = {"question": f"another {sample['doc_id']}"}

    def hashless(samples):
        for sample in samples:
            sample.pop("doc_hash")

    names = []
    for name, change in (("one", hashless), ("two", other)):
        folder = changed(runs, tmp_path / name, change)
        (first,) = [file for file in folder.rglob("*.jsonl") if "doc_hash" not in file.read_text()]
        shutil.copy(first, tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.csv").write_text(f"file,method,seed,task\n{name}.jsonl,m,0,quiz\n")
        assert imported(tmp_path / f"{name}.parquet", "--runs", tmp_path / f"{name}.csv") == 0
        names.append(set(load_scores(tmp_path / f"{name}.parquet")["document"]))
    assert len(names[0]) == len(names[1]) == DOCUMENTS and not names[0] & names[1]
