"""Cells that continue others, instruction rows, continual learning, and the choice of an epoch."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from simulated_study import other_code, rewrite_records
from smoke_study import smoke

from mola_core.analysis import collect
from mola_core.analysis.statistics import continual
from mola_core.errors import MolaError, OutOfTime
from mola_core.files import read_json
from mola_core.models.tokens import encode_text
from mola_core.models.weights import weights_sha256
from mola_core.records import read_record
from mola_core.runs import local
from mola_core.runs.cell import CellRunner
from mola_core.runs.key import keys
from mola_core.runs.layout import Layout
from mola_core.runs.local import open_cells, run
from mola_core.runs.recorded import made_otherwise
from mola_core.runs.state import cell_state, standing
from mola_core.study.loading import load_study
from mola_core.study.sections import INSTRUCTION
from mola_core.study.study import Cell, Study
from mola_core.tasks import load_task, render
from mola_core.tasks.examples import read_examples, write_examples
from mola_core.tasks.instruction import prepare_instruction, proportional_sample
from mola_core.tasks.rows import prepare_task

STAGES = {
    "tasks": ["cola"],
    "methods": ["base", "lora-r4", "mola-2468"],
    "seeds": [0],
    "instruction": {"epochs": 1.0, "documents": 40},
    "continual": {
        "epochs": 1.0,
        "tasks": ["scienceqa-biology", "scienceqa-physics"],
        "methods": ["mola-2468"],
    },
}


def test_cells_stand_after_their_parents():
    study = smoke(**STAGES)
    cells = study.all_cells()
    assert len(set(cells)) == len(cells)
    for place, cell in enumerate(cells):
        parent = study.parent(cell)
        assert parent is None or parent in cells[:place]
    assert {cell.task for cell in study.cells()} == {"cola"}, "stages are no rows of the score matrix"
    first, second = study.continual_cells()
    assert first.path == "continual-1-biology/mola-2468/seed0"
    assert study.parent(second) == first
    assert study.parent(first) == Cell(INSTRUCTION, "mola-2468", 0)
    assert study.parent(Cell("cola", "base", 0)) is None
    assert study.trained_on(second) == "scienceqa-physics"
    assert (
        study.evaluated_on(first) == study.evaluated_on(second) == ["scienceqa-biology", "scienceqa-physics"]
    )
    assert study.evaluated_on(Cell(INSTRUCTION, "lora-r4", 0)) == []
    assert smoke().all_cells() == smoke().cells()
    assert study.seeds_shared, "all tasks of a seed go on from one training"
    assert smoke(seeds_by_task=False).seeds_shared and not smoke().seeds_shared


def test_a_stage_has_its_own_training_settings():
    study = smoke(**STAGES, training={"documents": 7, "max_steps": 2, "epochs": 4})
    stage = study.training_of(Cell(INSTRUCTION, "lora-r4", 0))
    assert (stage.epochs, stage.max_steps, stage.documents, stage.loss_on) == (1.0, None, None, "all")
    stage = study.training_of(study.continual_cells()[1])
    assert (stage.epochs, stage.max_steps, stage.loss_on) == (1.0, None, "answer")
    assert stage.learning_rate == study.training.learning_rate
    assert study.training_of(study.cells()[1]) == study.training


def test_a_childs_key_holds_its_parents(bench):
    before = bench(**STAGES)
    cell, (first, second) = Cell("cola", "mola-2468", 0), before.study.continual_cells()
    was = {each: keys(before.layout, each) for each in before.study.all_cells()}

    def changed(cell, **changes):
        now = keys(bench(**{**STAGES, **changes}).layout, cell)
        assert now.evaluation
        return now != was[cell]

    other = {**STAGES["instruction"], "learning_rate": 0.5}
    assert all(changed(each, instruction=other) for each in (cell, first, second))
    assert not changed(Cell("cola", "base", 0), instruction=other)
    other = {**STAGES["continual"], "warmup_steps": 2}
    assert not changed(cell, continual=other)
    assert changed(first, continual=other) and changed(second, continual=other)
    plain = bench(tasks=["cola"], methods=["base", "lora-r4", "mola-2468"], seeds=[0])
    assert keys(plain.layout, cell) != was[cell]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continual": {"tasks": ["cola", "cola"]}}, "listed twice"),
        ({"continual": {"methods": ["base"]}}, "no trained method"),
        ({"methods": ["base", "pissa-lora-r4"], "instruction": {}}, "cannot be continued"),
        (
            {
                "methods": [
                    {
                        "method": "peft",
                        "name": "p",
                        "config": {"peft_type": "P_TUNING", "num_virtual_tokens": 4},
                    }
                ],
                "instruction": {},
            },
            r"'p' \(virtual tokens that an encoder makes\) cannot be continued",
        ),
        ({"tasks": ["instruction"]}, "name of a stage"),
        ({"training": {"epochs": [1, 2], "max_steps": 3}}, "max_steps does not go"),
        ({"training": {"epochs": [2, 1]}}, "ascending"),
        ({"instruction": {"epochs": [1, 2]}}, "epochs"),
    ],
)
def test_stages_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        smoke(**changes)


@pytest.mark.parametrize("count", [1, 7, 50, 100])
def test_a_sample_has_each_source_in_proportion(count):
    sources = ["flan"] * 60 + ["t0"] * 29 + ["cot"] * 11
    chosen = proportional_sample(sources, count, seed=1)
    assert len(set(chosen)) == len(chosen) == count
    for name, share in [("flan", 0.60), ("t0", 0.29), ("cot", 0.11)]:
        assert abs(sum(sources[row] == name for row in chosen) - share * count) < 1
    assert chosen == proportional_sample(sources, count, seed=1)
    assert count == 100 or chosen != proportional_sample(sources, count, seed=2)


def of_directory(root, documents, *files):
    """A study whose instruction rows are those of the files."""
    (root / "openorca").mkdir(exist_ok=True)
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows), root / "openorca" / f"{number}.parquet")
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    data = {"source": "directory", "root": str(root)}
    return Study.model_validate(content | {"data": data, "instruction": {"documents": documents}})


def test_instruction_rows_of_a_directory(tmp_path, bench, capsys):
    rows = [
        {
            "id": f"{'flan' if i % 4 else 'cot'}.{i}",
            "system_prompt": "",
            "question": f"q{i}",
            "response": "r" * (i + 1),
        }
        for i in range(80)
    ]
    study = of_directory(tmp_path, 20, rows)
    layout = Layout(study, tmp_path)
    prepare_instruction(study, tmp_path / "rows")
    fingerprint = read_json(tmp_path / "rows" / "fingerprint.json")
    assert fingerprint["sources"] == {"cot": 5, "flan": 15}
    tokenizer = bench().base.tokenizer
    write_examples(INSTRUCTION, "choice", tmp_path / "rows", tmp_path / "examples", tokenizer, 30, "")
    found = read_examples(tmp_path / "examples", "train")
    whole = [len(encode_text(tokenizer, example.completion, 1000).tokens) for example in found]
    cut = sum(tokens > 30 for tokens in whole)
    assert cut > 0 and f"{cut} of 20 texts of train lose their end" in capsys.readouterr().err
    documents = [encode_text(tokenizer, example.completion, 30) for example in found]
    table = pq.read_table(tmp_path / "rows" / "train.parquet").to_pylist()
    for document, row in zip(documents, table, strict=True):
        text = tokenizer.decode(document.tokens, skip_special_tokens=True)
        assert f"{row['question']}\n{row['response']}".startswith(text)
        assert len(document.tokens) <= 30
        assert document.prompt_length == 0
        assert len(document.tokens) == 30 or document.tokens[-1] == tokenizer.eos_token_id
    before = layout.data(INSTRUCTION)
    short = of_directory(tmp_path, 41, rows[:40])
    assert layout.data(INSTRUCTION) != before, "other files, another folder"
    with pytest.raises(MolaError, match="documents: 41, but the source has 40 rows with text"):
        prepare_instruction(short, tmp_path / "short")
    shutil.rmtree(tmp_path / "openorca")
    with pytest.raises(MolaError, match="no parquet file"):
        layout.data(INSTRUCTION)


ORCA = {"id": "flan.1", "system_prompt": "", "question": "Why?", "response": "So."}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ORCA | {"id": None}, ORCA], "row 0 has no text in column 'id'"),
        ([ORCA | {"response": 7}], "has int64 in column 'response'; write text"),
        ([{"id": "flan.1", "question": "Why?"}], "has no column 'response'"),
    ],
)
def test_columns_of_instruction_rows_that_are_not_text_are_refused(tmp_path, rows, message):
    study = of_directory(tmp_path, 1, [ORCA], rows)
    with pytest.raises(MolaError, match=f"instruction rows: .*1.parquet:? {message}"):
        prepare_instruction(study, tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_instruction_rows_that_say_nothing_are_left_out_and_told(tmp_path, capsys):
    """An empty cell would be trained on as the word None."""
    empty = [{"question": None}, {"question": ""}, {"response": " \n"}, {"response": None}]
    study = of_directory(tmp_path, 2, [ORCA, *(ORCA | each for each in empty)], [ORCA])
    prepare_instruction(study, tmp_path / "rows")
    assert "4 of 6 have no question or no response and are left out" in capsys.readouterr().err
    kept = pq.read_table(tmp_path / "rows" / "train.parquet").to_pylist()
    assert [row["question"] for row in kept] == ["Why?"] * 2
    assert read_json(tmp_path / "rows" / "fingerprint.json")["left_out"] == 4
    with pytest.raises(MolaError, match="documents: 3, but the source has 2 rows with text"):
        prepare_instruction(
            of_directory(tmp_path, 3, [ORCA, *(ORCA | each for each in empty)], [ORCA]), tmp_path / "more"
        )


def test_a_cell_continues_from_its_parent(bench):
    bench = bench(**STAGES)
    parent, child = Cell(INSTRUCTION, "mola-2468", 0), Cell("cola", "mola-2468", 0)
    with pytest.raises(MolaError, match="instruction/mola-2468/seed0: not trained"):
        bench.train(child)
    bench.run(parent)
    bench.run(child)
    assert standing(bench.layout, parent).trained and standing(bench.layout, child).evaluated
    assert not (bench.layout.cell(parent) / "samples.parquet").exists()
    manifest = read_json(bench.layout.cell(child) / "manifest.json")
    assert manifest["parent"] == parent.path
    record = manifest["training"]["parent"]
    assert record["key"] == keys(bench.layout, parent).training
    assert record["adapter_sha256"] == weights_sha256(bench.layout.weights(parent))

    def adapter(cell):
        return load_file(bench.layout.weights(cell) / "adapter_model.safetensors")

    trained, start = adapter(child), adapter(parent)
    assert any(not trained[name].equal(start[name]) for name in start)
    assert not made_otherwise(bench.layout, child)
    slower = bench.study.instruction.model_copy(update={"learning_rate": 7e-4})
    layout = dataclasses.replace(bench.layout, study=bench.study.model_copy(update={"instruction": slower}))
    for cell in (parent, child):
        [said] = made_otherwise(layout, cell)
        assert "learning_rate" in said and said.endswith("-> 0.0007")


def test_a_child_starts_with_what_its_parent_learnt(bench):
    """The child's own steps are next to nothing, so that what it ends with is what it began with."""
    learning = {
        "instruction": {**STAGES["instruction"], "learning_rate": 0.01},
        "training": {"learning_rate": 1e-30},
    }
    bench = bench(**{**STAGES, **learning})
    cells = [Cell(INSTRUCTION, "mola-2468", 0), Cell("cola", "mola-2468", 0)]
    for cell in cells:
        bench.train(cell)
    parent, child = (load_file(bench.layout.weights(cell) / "adapter_model.safetensors") for cell in cells)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in parent.items() if "mola_B" in name)
    assert all(child[name].allclose(parent[name], rtol=0, atol=1e-20) for name in parent)


@pytest.mark.parametrize("method", ["full", "prompt-tuning", "llama-adapter", "pissa-mola-2468"])
def test_other_methods_go_through_the_same_cells(bench, method):
    content = {
        **STAGES,
        "methods": ["base", method, "lora-r4"],
        "continual": {**STAGES["continual"], "methods": [method]},
    }
    bench = bench(**content)
    for cell in [Cell(INSTRUCTION, method, 0), Cell("cola", method, 0), *bench.study.continual_cells()]:
        bench.run(cell)
        assert cell_state(bench.layout, cell) == "complete"
    record = read_json(bench.layout.cell(Cell("cola", method, 0)) / "training.json")
    assert record["base_parameters"] == bench.base.model.num_parameters()
    assert (record["trainable_parameters"] == record["base_parameters"]) == (method == "full")
    if method == "full":
        assert list(bench.layout.cell(Cell("cola", method, 0)).glob("model/*.safetensors"))
    # The base model is what it was: another cell of this process is what it is in one of its own.
    other = Cell(INSTRUCTION, "lora-r4", 0)
    bench.train(other)
    after = weights_sha256(bench.layout.weights(other))
    shutil.rmtree(bench.layout.cell(other))
    CellRunner(bench.layout).train(other)
    assert weights_sha256(bench.layout.weights(other)) == after


def test_continual_learning_to_op_and_pd(bench):
    content = {**STAGES, "instruction": None, "methods": ["base", "mola-2468"]}
    content.pop("instruction")
    bench = bench(**content)
    for cell in bench.study.all_cells():
        bench.run(cell)
    collect.write(bench.layout)
    frame = continual.read(bench.layout.folder)
    assert list(frame["trained_up_to"]) == ["biology", "biology", "physics", "physics"]
    assert list(frame["tested_on"]) == ["biology", "physics"] * 2
    last = bench.study.continual_cells()[1]
    samples = pd.read_parquet(bench.layout.cell(last) / "samples.parquet")
    by_task = samples.groupby("task")["correct"].mean()
    assert frame["accuracy"].iloc[2] == by_task["scienceqa-biology"]
    op = continual.summary(frame)["op"].item()
    assert op == pytest.approx(by_task.mean())
    scores = pd.read_parquet(bench.layout.folder / "scores.parquet")
    assert set(scores["task"]) == {"cola"}
    made_by_other_code(bench.layout)
    collect.write(bench.layout, as_recorded=True)
    pd.testing.assert_frame_equal(continual.read(bench.layout.folder), frame)
    rewrite_records(bench.layout, last, lambda training, _: training["parts"].update(parent="0" * 64))
    with pytest.raises(MolaError, match="went on from another training than that of continual-1-biology"):
        collect.write(bench.layout, as_recorded=True)


def made_by_other_code(layout):
    """Parents before their children, whose records hold the parents' keys."""
    trained = {}
    for cell in layout.study.all_cells():
        parent = layout.study.parent(cell)

        def change(training, manifest, parent=parent):
            other_code(training, manifest)
            for made in filter(None, (training, manifest["evaluation"])):
                made["git"] = {}
            if parent:
                training["parts"]["parent"] = trained[parent]

        rewrite_records(layout, cell, change)
        trained[cell] = read_record(layout.cell(cell) / "manifest.json")["training_key"]


EPOCHS = {
    "tasks": ["cola"],
    "methods": ["base", "mola-2468"],
    "seeds": [0],
    "training": {"epochs": [1, 2, 3]},
}


def test_the_best_epoch_on_validation_is_kept(bench, monkeypatch):
    bench = bench(**EPOCHS, evaluation={"every_epoch": True})
    cell = Cell("cola", "mola-2468", 0)
    accuracies = iter([0.5, 0.75, 0.75])
    plain = CellRunner._evaluated

    def scripted(self, model, name, validated=False):
        frame, record = plain(self, model, name, validated)
        return (frame, record | {"accuracy": next(accuracies)}) if validated else (frame, record)

    monkeypatch.setattr(CellRunner, "_evaluated", scripted)
    bench.run(cell)
    manifest = read_json(bench.layout.cell(cell) / "manifest.json")
    choice = manifest["training"]["epoch_choice"]
    assert choice["chosen"] == manifest["training"]["epochs"] == 2, "the earlier of two equals"
    assert choice["split"] == "held out of train"
    assert [entry["validation_accuracy"] for entry in choice["candidates"]] == [0.5, 0.75, 0.75]
    assert sorted(folder.name for folder in (bench.layout.cell(cell) / "epochs").iterdir()) == ["1", "3"]
    both = manifest["evaluation"]["epoch_choice"]
    assert both["chosen_on_validation"] == {"epoch": 2, "accuracy": manifest["evaluation"]["accuracy"]}
    best = max(entry["evaluation_accuracy"] for entry in both["candidates"])
    assert both["chosen_on_evaluation_set"]["accuracy"] == best
    # Each candidate is what its name says: training goes on from one to the next.
    folders = [
        bench.layout.candidates(cell) / "1",
        bench.layout.weights(cell),
        bench.layout.candidates(cell) / "3",
    ]
    assert len({weights_sha256(folder) for folder in folders}) == 3


def test_a_stopped_training_chooses_the_same_epoch(bench):
    bench = bench(**EPOCHS)
    cell = Cell("cola", "mola-2468", 0)
    bench.train(cell)
    undisturbed = read_json(bench.layout.cell(cell) / "training.json")
    shutil.rmtree(bench.layout.cell(cell))
    for _ in range(7):  # past the end of the first epoch
        bench.deadline = 1.0
        with pytest.raises(OutOfTime):
            bench.train(cell)
    bench.deadline = None
    bench.train(cell)
    record = read_json(bench.layout.cell(cell) / "training.json")
    assert record["resumed"] is True
    assert record["epoch_choice"] == undisturbed["epoch_choice"]
    assert record["adapter_sha256"] == undisturbed["adapter_sha256"]


@pytest.mark.parametrize(("task", "held_out"), [("cola", True), ("scienceqa", False)])
def test_validation_documents_are_apart_from_training_and_evaluation(tmp_path, task, held_out):
    study = load_study("smoke")
    prepare_task(task, study.data, tmp_path / task)
    chosen, plain = (load_task(task, "choice", tmp_path / task, validated) for validated in (True, False))
    evaluated = {
        example.document for example in render(plain, "test" if plain.has_test_docs() else "validation")
    }
    validation = {example.document for example in render(chosen, "validation")}
    train, whole = ({example.document for example in render(each, "train")} for each in (chosen, plain))
    assert not chosen.has_test_docs(), "lm-eval would evaluate on it"
    assert validation and not validation & train and not validation & evaluated
    assert train <= whole
    assert (validation <= whole) == held_out
    assert len(whole) - len(train) == (len(whole) // 10 if held_out else 0)
    assert [e.document for e in render(chosen, "train")] == [
        e.document for e in render(load_task(task, "choice", tmp_path / task, True), "train")
    ], "always the same"


def test_run_puts_parents_first_and_drops_weights_that_nobody_needs(bench):
    content = {**STAGES, "methods": ["base", "mola-2468"]}
    layout = bench(**content).layout
    outcomes = run(layout, keep_adapters=False)
    assert {outcome.state for outcome in outcomes} == {"complete"}, outcomes
    assert not list(layout.folder.glob("cells/*/*/*/adapter"))
    assert open_cells(layout) == []
    # A child that is to be made again needs its ancestors' weights again.
    last = layout.study.continual_cells()[-1]
    (layout.cell(last) / "manifest.json").unlink()
    ancestors = [Cell(INSTRUCTION, "mola-2468", 0), layout.study.continual_cells()[0]]
    assert open_cells(layout) == [*ancestors, last]


def test_weights_stay_of_cells_that_are_not_complete_and_of_those_before_them(bench, monkeypatch):
    """Trained, but their evaluation failed: the next run evaluates them and trains nothing again."""
    dropped = []
    monkeypatch.setattr(local, "remove", dropped.append)
    layout = bench(**{**STAGES, "methods": ["mola-2468"]}).layout
    parent, first, second, *_ = [Cell(INSTRUCTION, "mola-2468", 0), *layout.study.continual_cells()]
    for cell in (parent, first, second):
        layout.cell(cell).mkdir(parents=True, exist_ok=True)
        (layout.cell(cell) / "training.json").write_text("{}")
    local._drop_weights(layout, [parent, first], [second])
    assert dropped == [layout.weights(parent), layout.candidates(parent)]


def test_a_time_budget_cuts_off_whole_seeds(bench):
    layout = bench(tasks=["cola", "scienceqa"], methods=["lora-r4", "mola-2468"], seeds=[3, 1]).layout
    assert [(cell.seed, cell.task) for cell in open_cells(layout)][::2] == [
        (3, "cola"),
        (3, "scienceqa"),
        (1, "cola"),
        (1, "scienceqa"),
    ]


def test_what_hangs_on_a_failed_cell_is_not_begun(bench):
    content = {
        **STAGES,
        "methods": ["base", "lora-r4"],
        "continual": {**STAGES["continual"], "methods": ["lora-r4"]},
    }
    layout = bench(**content).layout
    # A folder where the cell has to write a file: nothing that could be known before its turn.
    (layout.cell(Cell(INSTRUCTION, "lora-r4", 0)) / "train.jsonl").mkdir(parents=True)
    outcomes = {outcome.cell: outcome for outcome in run(layout)}
    assert set(outcomes) == set(layout.study.all_cells())
    failed = {cell for cell, outcome in outcomes.items() if outcome.state == "failed"}
    assert failed == {cell for cell in outcomes if cell.method == "lora-r4"}
    reasons = [outcomes[cell].reason for cell in failed if cell.task != INSTRUCTION]
    assert reasons and all(reason.startswith("after instruction/lora-r4") for reason in reasons)


def test_rounding_shares_never_asks_for_more_than_there_is():
    random = np.random.default_rng(0)
    for _ in range(50):
        sources = random.choice(["a", "b", "c", "d"], random.integers(1, 40)).tolist()
        count = int(random.integers(1, len(sources) + 1))
        assert len(set(proportional_sample(sources, count, 0))) == count
