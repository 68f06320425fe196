"""What the harness itself costs: evaluation, a cell around its work, padding, and planning a large study."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from mola_core.benchmark.steps import adapted, step
from mola_core.benchmark.timing import Row, device, in_turn, ratio
from mola_core.files import read_json
from mola_core.locations import STUDIES, snakefile
from mola_core.models.tokens import encode
from mola_core.runs.cell import CellRunner
from mola_core.runs.layout import Layout
from mola_core.study.study import Study
from mola_core.tasks import render
from mola_core.training.batches import Collator, LengthGrouped, Packer

DOCUMENTS = 16


def evaluation(layout: Layout, repeats: int) -> list[Row]:
    """Documents a second: one forward pass a document against lm-eval's one pass an option."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    from mola_core.evaluation.harness import AnswerLM

    bench = CellRunner(layout)
    name = "scienceqa"
    task = bench._task(name, False)
    arguments = {
        "pretrained": bench.base.model,
        "tokenizer": bench.base.tokenizer,
        "batch_size": 16,
        "device": str(device()),
    }

    def evaluate(model: HFLM):  # noqa: ANN202
        return lambda: evaluator.evaluate(model, {name: task}, limit=DOCUMENTS, bootstrap_iters=0)

    seconds = in_turn(
        {
            "ours": evaluate(AnswerLM(**arguments)),
            "an option": evaluate(HFLM(**arguments, logits_cache=False)),
            "lm-eval": evaluate(HFLM(**arguments)),
        },
        repeats,
    )
    return [
        Row("evaluation", "documents/s, one pass a document / one pass an option, ScienceQA", ratio(seconds, "an option", "ours"), 2, False),
        Row("evaluation", "documents/s, ours / lm-eval's own single-token sharing", ratio(seconds, "lm-eval", "ours"), None, False),
    ]  # fmt: skip


def padding(layout: Layout) -> list[Row]:
    """Share of an epoch's tokens that is padding, at batches of 16."""
    bench = CellRunner(layout)
    rows = []
    for name in layout.study.tasks:
        documents = render(bench._task(name, False), "train")
        lengths = [len(encode(bench.base.tokenizer, d.prompt, d.completion, 256).tokens) for d in documents]
        order = list(LengthGrouped(lengths, 16, seed=0))
        batches = [
            [lengths[index] for index in order[start : start + 16]] for start in range(0, len(order), 16)
        ]
        padded = sum(max(batch) * len(batch) for batch in batches)
        share = 1 - sum(lengths) / padded
        note = f"{len(lengths)} documents, mean {sum(lengths) / len(lengths):.0f} tokens"
        rows.append(
            Row(
                "padding",
                f"padding in an epoch of {name}, batches of 16",
                100 * share,
                8,
                unit="%",
                note=note,
            )
        )
    return rows


def prefix(layout: Layout, repeats: int) -> list[Row]:
    """Training steps on the same 8 documents, `training.shared_prefix` off and on, shape 2468."""
    bench = CellRunner(layout)
    model = adapted(bench.base.model, "mola-2468", 0.05)
    rows = []
    for name in layout.study.tasks:
        documents = [
            encode(bench.base.tokenizer, d.prompt, d.completion, 256)
            for d in render(bench._task(name, False), "train", 512)
        ]
        order = list(LengthGrouped([len(d.tokens) for d in documents], 8, seed=0))[:8]
        batch = [documents[index] for index in order]
        padded, packed = Collator(bench.base.tokenizer.pad_token_id, "answer")(batch), Packer()(batch)
        seconds = in_turn({"padded": step(model, padded), "packed": step(model, packed)}, repeats)
        tokens = f"{padded['input_ids'].numel()} and {packed['input_ids'].numel()} tokens for 8 documents"
        what = f"training step on {name}, every document whole / instruction shared"
        rows.append(Row("prefix", what, ratio(seconds, "padded", "packed"), None, False, note=tokens))
    return rows


def overhead(layout: Layout) -> list[Row]:
    """Wall time of a cell outside its training steps and forward passes: imports, loading, set-up, writing.

    As Snakemake runs it, a process for the cell; and as `mola run` does, three cells in one worker.
    """
    with tempfile.TemporaryDirectory() as folder:
        content = layout.study.model_dump(mode="json", exclude_none=True)
        content |= {
            "methods": [{"method": "mola-2468"}],
            "seeds": [0, 1, 2, 3],
            "tasks": content["tasks"][:1],
        }
        content["training"] |= {
            "max_steps": 2,
            "warmup_steps": 0,
            "batch_size": 8,
            "micro_batch_size": 8,
            "documents": 16,
        }
        content["evaluation"]["documents"] = 16
        file = Path(folder) / "overhead.yaml"
        file.write_text(yaml.safe_dump(content))
        results = Path(folder) / "results"
        results.mkdir()
        for shared in ("models", "data"):
            (results / shared).symlink_to((layout.root / shared).resolve())
        study = ["--study", str(file), "--results", str(results)]
        first, *others = Layout(Study.model_validate(content), results).study.cells()
        _seconds(["examples", *study])  # a job of its own, once a task
        alone = _seconds(["cell", *study, "--cell", first.task, first.method, str(first.seed)])
        together = _seconds(["run", *study])
        parsed = Layout(Study.model_validate(content), results)
        work = {cell: _work(parsed.cell(cell)) for cell in (first, *others)}
    together = (together - sum(work[cell] for cell in others)) / len(others)
    what = "wall time of a cell outside training and evaluation"
    return [
        Row("cell", f"{what}, as a job of Snakemake's", alone - work[first], 10, unit="s"),
        Row("cell", f"{what}, one of three in `mola run`", together, 10, unit="s"),
    ]


def _seconds(verb: list[str]) -> float:
    """Wall time of `mola <verb>`."""
    return _seconds_of([sys.executable, "-m", "mola_core.cli", *verb])


def _seconds_of(command: list[str], cwd: Path | None = None) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=cwd)
    return time.perf_counter() - started


def _work(cell: Path) -> float:
    """Seconds of a cell's training steps and forward passes."""
    manifest = read_json(cell / "manifest.json")
    return manifest["training"]["seconds"] + manifest["evaluation"]["seconds"]


def planning() -> list[Row]:
    """`snakemake -n` on studies of many cells, none of them done."""
    return [
        Row("planning", f"snakemake -n on a study of {cells:,} cells", _planning(cells), goal, unit="s")
        for cells, goal in ((1000, 8), (5000, 25))
    ]


def _planning(cells: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        content = yaml.safe_load((STUDIES / "smoke.yaml").read_text())
        content |= {"methods": ["mola-2468", "mola-8642"], "seeds": list(range(cells // 4)), "name": "many"}
        study = Path(folder) / "many.yaml"
        study.write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--snakefile", str(snakefile())]
        command += ["--config", f"study={study}", f"results={folder}/results"]
        return _seconds_of(command, cwd=Path(folder))
