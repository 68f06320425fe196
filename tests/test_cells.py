"""Training and evaluation of cells, on a tiny random model: what is written, resumed, refused and equal."""

import dataclasses
import hashlib
import json
import math
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from smoke_study import smoke

from mola_core.analysis import collect
from mola_core.errors import MolaError, OutOfTime
from mola_core.files import read_json
from mola_core.models.tokens import encode
from mola_core.records import read_record
from mola_core.runs.cell import CellRunner
from mola_core.runs.export import export_adapter
from mola_core.runs.key import keys
from mola_core.runs.layout import Layout
from mola_core.runs.local import results_of, run
from mola_core.runs.state import cell_state, standing
from mola_core.tasks import load_task, render
from mola_core.training.trainer import MARKER, last_checkpoint


def adapter_bytes(bench, cell) -> str:
    file = bench.layout.cell(cell) / "adapter" / "adapter_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_base_has_one_size_whatever_an_adapter_freezes_or_trains_of_it(bench):
    """AdaLoRA freezes numbers of its own. PiSSA as PEFT's LoRA takes its start out of the base, so it has no size of update."""
    bench = bench(
        tasks=["cola"], methods=["lora-r4", "adalora-r4", "pissa-lora-r4", "pissa-mola-2468"], seeds=[0]
    )
    size = bench.base.model.num_parameters()
    for cell in bench.study.cells():
        bench.train(cell)
        record = read_record(bench.layout.cell(cell) / "training.json")
        assert record["base_parameters"] == size, cell
        assert ("update_size" in record) == (cell.method != "pissa-lora-r4"), cell


def test_a_cell_is_trained_evaluated_and_recorded(bench):
    bench = bench()
    cell = bench.study.cell("cola", "mola-2468", 0)
    bench.run(cell)
    folder = bench.layout.cell(cell)
    manifest = read_json(folder / "manifest.json")
    samples = pd.read_parquet(folder / "samples.parquet")
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert manifest["evaluation_key"] == keys(bench.layout, cell).evaluation
    assert manifest["training_key"] == manifest["training"]["key"] == keys(bench.layout, cell).training
    assert manifest["stand_in"] is True
    assert manifest["training"]["experts"] == [2, 4, 6, 8]
    assert manifest["training"]["steps"] == len(log) == 6
    assert manifest["training"]["adapter_sha256"] == adapter_bytes(bench, cell)
    assert manifest["evaluation"]["accuracy"] == samples["correct"].mean()
    assert samples["document"].is_unique
    assert log[-1]["tokens"] > log[0]["tokens"] > 0
    assert standing(bench.layout, cell).evaluated
    assert not bench.layout.checkpoints(keys(bench.layout, cell).training).exists()
    config = read_json(folder / "adapter" / "adapter_config.json")
    assert config["num_experts"] == [2, 4, 6, 8]
    assert config["base_model_name_or_path"] == "tiny-random-llama", "no path of this machine"
    card = (folder / "adapter" / "README.md").read_text()
    assert "import mola_core" in card and "experts 2 x 1, 4 x 1, 6 x 1, 8 x 1" in card
    assert f"| cola | {100 * manifest['evaluation']['accuracy']:.1f} |" in card
    assert str(folder) not in card


def test_choices_equal_a_hand_computation(bench):
    """Options' log-likelihoods computed one by one with plain transformers, without padding or sharing."""
    bench = bench(evaluation={"documents": 8, "batch_size": 3})
    for task_name in bench.study.tasks:
        cell = bench.study.cell(task_name, "base", 0)
        bench.evaluate(cell)
        samples = pd.read_parquet(bench.layout.cell(cell) / "samples.parquet")
        task = load_task(task_name, "choice", bench.layout.data(task_name))
        documents = {
            example.document: example
            for example in render(task, "test" if task.has_test_docs() else "validation")
        }
        for sample in samples.itertuples():
            example = documents[sample.document]
            expected = []
            for option in example.options:
                encoded = encode(bench.base.tokenizer, example.prompt, option, 10_000)
                tokens = torch.tensor([encoded.tokens])
                with torch.no_grad():
                    scores = bench.base.model(tokens).logits.log_softmax(-1)[0]
                answer = range(encoded.prompt_length, len(encoded.tokens))
                expected.append(sum(scores[i - 1, encoded.tokens[i]].item() for i in answer))
            assert sample.loglikelihoods == pytest.approx(expected, abs=1e-4)
            assert int(sample.answer) == expected.index(max(expected))
            assert sample.correct == (int(sample.answer) == example.answer)


@pytest.mark.parametrize("name", ["scienceqa", "cola"], ids=["one token an option", "several"])
def test_the_answers_only_evaluation_equals_lm_evals(bench, name):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    bench = bench()
    cell = bench.study.cell(name, "base", 0)
    bench.evaluate(cell)
    ours = pd.read_parquet(bench.layout.cell(cell) / "samples.parquet")
    stock = HFLM(
        pretrained=bench.base.model,
        tokenizer=bench.base.tokenizer,
        batch_size=4,
        device="cpu",
        logits_cache=False,
    )
    outcome = evaluator.evaluate(
        stock, {name: load_task(name, "choice", bench.layout.data(name))}, bootstrap_iters=0, log_samples=True
    )
    samples = sorted(outcome["samples"][name], key=lambda sample: sample["doc_id"])
    for row, sample in zip(ours.itertuples(), samples, strict=True):
        assert row.loglikelihoods == pytest.approx(
            [response[0] for response in sample["filtered_resps"]], abs=1e-4
        )
        assert row.correct == sample["acc"]


def test_one_seed_gives_one_adapter_whatever_ran_before(bench):
    bench = bench()
    cell, other = bench.study.cell("cola", "mola-2468", 0), bench.study.cell("cola", "lora-r4", 1)
    bench.train(cell)
    first = adapter_bytes(bench, cell)
    bench.train(other)
    bench.train(cell)
    assert adapter_bytes(bench, cell) == first
    bench.train(bench.study.cell("cola", "mola-2468", 1))
    assert adapter_bytes(bench, bench.study.cell("cola", "mola-2468", 1)) != first


def test_training_with_a_shared_prefix_is_the_same_training(bench):
    """The Trainer's loss and steps, accumulation included; dropout off, since its masks are drawn otherwise."""
    records, losses = [], []
    for shared in (False, True):
        other = bench(adapter={"dropout": 0.0}, training={"shared_prefix": shared, "micro_batch_size": 2})
        cell = other.study.cell("cola", "mola-2468", 0)
        other.train(cell)
        folder = other.layout.cell(cell)
        records.append(read_json(folder / "training.json"))
        losses.append([json.loads(line)["loss"] for line in (folder / "train.jsonl").open()])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert records[1]["steps"] == records[0]["steps"] > 1
    assert records[1]["tokens"] < 0.8 * records[0]["tokens"], "the instruction is computed once a micro-batch"


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_cell_on_a_quantised_base(bench, quantization):
    """bitsandbytes holds the frozen weights, by its CPU build where there is no GPU."""
    pytest.importorskip("bitsandbytes")
    # Blocks of 64 weights: the CPU path with avx512_bf16 takes no narrower matrix.
    model = {"quantization": quantization, "hidden": 64}
    workbench = bench(model=model, tasks=["cola"], methods=["mola-2468"], seeds=[0])
    [cell] = workbench.study.cells()
    held = {name: value.clone() for name, value in workbench.base.model.state_dict().items()}
    assert any(value.dtype in (torch.int8, torch.uint8) for value in held.values())
    workbench.run(cell)
    assert standing(workbench.layout, cell).evaluated
    adapter = load_file(workbench.layout.weights(cell) / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for tensor in adapter.values()), "B starts at zero and was trained"
    for name, value in workbench.base.model.state_dict().items():
        assert torch.equal(value, held[name]), f"{name} is frozen"


@pytest.mark.skipif(torch.cuda.is_available(), reason="bitsandbytes repacks weights on CPUs only")
def test_a_quantised_base_is_loaded_anew_for_each_cell(bench):
    """On a CPU with bf16 bitsandbytes rounds the scales of a base that is evaluated: the next cell must not get it."""
    pytest.importorskip("bitsandbytes")
    model = {"quantization": "4bit", "hidden": 64}
    workbench = bench(model=model, tasks=["cola"], methods=["mola-2468"], seeds=[0, 1])
    first, second = workbench.study.cells()
    workbench.run(first)
    workbench.run(second)
    beside = adapter_bytes(workbench, second)
    shutil.rmtree(workbench.layout.cell(second))
    CellRunner(workbench.layout).run(second)
    assert adapter_bytes(workbench, second) == beside


def test_a_stopped_training_goes_on_to_the_same_adapter(bench, monkeypatch):
    bench = bench(training={"epochs": 3})
    cell = bench.study.cell("cola", "mola-2468", 0)
    bench.train(cell)
    undisturbed = adapter_bytes(bench, cell)
    shutil.rmtree(bench.layout.cell(cell))
    # The deadline has passed before the first step ends; take it back after a few stops.
    for _ in range(3):
        bench.deadline = 1.0
        with pytest.raises(OutOfTime):
            bench.train(cell)
        assert not (bench.layout.cell(cell) / "training.json").exists()
    bench.deadline = None
    bench.train(cell)
    record = read_json(bench.layout.cell(cell) / "training.json")
    assert record["resumed"] is True
    assert record["steps"] == 18
    assert adapter_bytes(bench, cell) == undisturbed


def test_a_checkpoint_that_was_cut_short_is_not_resumed(tmp_path):
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / MARKER).write_text("{}")
    (tmp_path / "checkpoint-20").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    assert not (tmp_path / "checkpoint-20").exists()


def test_keys_change_with_what_decides_the_result_and_with_nothing_else(bench):
    before = bench()
    cell = before.study.cell("cola", "mola-2468", 0)

    other = before.study.cell("cola", "lora-r4", 0)
    was, others = keys(before.layout, cell), keys(before.layout, other)

    def changed(**changes):
        now = keys(bench(**changes).layout, cell)
        assert now.training and now.evaluation
        return was.training != now.training, was.evaluation != now.evaluation

    assert changed(training={"learning_rate": 0.5}) == (True, True)
    assert changed(evaluation={"documents": 3}) == (False, True)
    assert changed(data={"train_documents": 40}) == (True, True)
    assert changed(data={"test_documents": 20}) == (False, True)
    assert changed(model={"seed": 9}) == (True, True)
    assert changed(adapter={"rank": 4}) == (True, True)
    assert changed(compute={"threads": 2}) == (False, False)
    assert changed(seeds=[0, 1, 2], description="other words") == (False, False)
    assert changed(evaluation={"batch_size": 3}) == (False, False)
    rank = bench(methods=["base", "lora-r4", {"method": "mola-2468", "rank": 2}]).layout
    assert keys(rank, cell).training != was.training
    assert keys(rank, other) == others


def test_experts_fewer_than_top_k_are_refused_when_the_study_is_read():
    for method in (
        {"method": "mola-2468", "top_k": 3},
        {"method": "mola", "name": "x", "experts": [2, 3, 4, 5], "top_k": 3},
    ):
        with pytest.raises(ValueError, match="top_k 3 is above the 2 experts"):
            smoke(methods=["base", method])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "mola", "name": "mola-short", "experts": [2, 2]}, "lists 2 layers, the model has 4"),
        ({"method": "mola-2468", "target_modules": ["q_proj", "no_such_proj"]}, "no_such_proj"),
    ],
)
def test_a_method_that_does_not_fit_the_model_is_one_line(bench, method, message):
    bench = bench(methods=["base", method])
    cell = next(cell for cell in bench.study.cells() if cell.method != "base")
    with pytest.raises(MolaError, match=message) as error:
        bench.train(cell)
    assert "\n" not in str(error.value)
    assert not bench.layout.cell(cell).exists()


def test_warm_up_that_outlasts_the_training_is_refused(bench):
    with pytest.raises(ValueError, match="warmup_steps: 100 is not below the 6 steps"):
        bench(training={"warmup_steps": 100})


def test_an_altered_or_untrained_adapter_is_refused(bench):
    bench = bench()
    cell = bench.study.cell("cola", "lora-r4", 0)
    bench.train(cell)
    file = bench.layout.cell(cell) / "adapter" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(MolaError, match="altered"):
        bench.evaluate(cell)
    frozen = dataclasses.replace(
        bench, layout=Layout(smoke(training={"learning_rate": 1e-30}), bench.layout.root)
    )
    frozen.train(cell)
    with pytest.raises(MolaError, match="does not change the model's logits"):
        frozen.evaluate(cell)


def test_scores_are_those_of_the_weights_that_are_there(bench):
    """Weights that were lost and made again may be others: on a GPU, or by another kind of processor."""
    runner = bench(tasks=["cola"], methods=["base", "mola-2468"], seeds=[0], evaluation={"documents": 8})
    layout, cell = runner.layout, runner.study.cell("cola", "mola-2468", 0)
    for each in runner.study.cells():
        runner.run(each)
    shutil.rmtree(layout.weights(cell))
    assert cell_state(layout, cell) == "complete", "nothing needs them"
    runner.train(cell)
    assert cell_state(layout, cell) == "trained" and collect.evaluation_state(layout, cell) == "out of date"
    with pytest.raises(MolaError, match="not complete"):
        export_adapter(layout, "cola/mola-2468/seed0", layout.folder / "exported")
    runner.evaluate(cell)
    assert cell_state(layout, cell) == "complete"
    manifest, training = (
        read_record(layout.cell(cell) / name) for name in ("manifest.json", "training.json")
    )
    assert manifest["training"] == training
    assert len(collect.write(layout)) == 2


def test_seeds_of_two_tasks_are_independent_and_those_of_two_methods_paired(bench):
    study = smoke(methods=["mola-2468", "lora-r4"])
    cells = [
        study.cell(task, method, 0) for task in ("cola", "scienceqa") for method in ("mola-2468", "lora-r4")
    ]
    seeds = [study.training_seed(cell) for cell in cells]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert len({study.training_seed(study.cell("cola", "lora-r4", seed)) for seed in study.seeds}) == len(
        study.seeds
    )
    plain = smoke(methods=["mola-2468"], seeds_by_task=False)
    assert [plain.training_seed(cell) for cell in plain.cells()] == [cell.seed for cell in plain.cells()]


def test_a_training_that_diverges_is_a_result(bench, monkeypatch):
    """Recorded with its step, evaluated as a model that knows nothing, and not trained again."""
    from mola_core.training import trainer

    bench = bench(tasks=["cola"], methods=["base", "lora-r4"], seeds=[0], training={"learning_rate": 1000.0})
    cell = bench.study.cell("cola", "lora-r4", 0)
    original, losses = trainer.CellTrainer.compute_loss, []

    def loss_of(self, *arguments, **options):
        loss = original(self, *arguments, **options)
        losses.append(loss)
        return loss * float("nan") if len(losses) > 5 else loss

    monkeypatch.setattr(trainer.CellTrainer, "compute_loss", loss_of)
    bench.run(cell)
    folder = bench.layout.cell(cell)
    record = read_record(folder / "training.json")
    assert record["diverged"] == {"step": 3, "reason": "the loss is not finite"}
    assert (record["steps"], record["final_loss"]) == (3, None), "it ends there: two micro-batches a step"
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [entry["loss"] is None for entry in log] == [False, False, True]
    assert [file.name for file in bench.layout.weights(cell).iterdir()] == ["diverged.json"]
    bench.count_routing(cell)
    assert pd.read_csv(bench.layout.cell(cell) / "routing.csv").empty, "it has no routers, and is no error"
    samples = pd.read_parquet(folder / "samples.parquet")
    base = bench.study.cell("cola", "base", 0)
    bench.run(base)
    others = pd.read_parquet(bench.layout.cell(base) / "samples.parquet")
    assert samples["document"].tolist() == others["document"].tolist()
    assert (samples["correct"] == (others["target"] == "0")).all() and 0 < samples["correct"].mean() < 1
    letters = -math.log(len(bench.base.tokenizer))  # a token a byte, each as likely as any other
    for values, right in zip(samples["loglikelihoods"], others["target"], strict=True):
        length = len((" unacceptable", " acceptable")[int(right)])
        assert values.tolist() == pytest.approx([letters * length] * 2)
    assert cell_state(bench.layout, cell) == "complete"
    before = len(losses)
    bench.run(cell)
    assert len(losses) == before, "it is there"


def test_weights_that_are_not_finite_are_not_kept(bench, monkeypatch):
    from mola_core.training import trainer

    bench = bench(tasks=["cola"], methods=["base", "lora-r4"], seeds=[0])
    cell = bench.study.cell("cola", "lora-r4", 0)
    original = trainer.CellTrainer.train

    def spoilt(self, *arguments, **options):
        outcome = original(self, *arguments, **options)
        next(p for p in self.model.parameters() if p.requires_grad).data[0] = float("inf")
        return outcome

    monkeypatch.setattr(trainer.CellTrainer, "train", spoilt)
    bench.run(cell)
    record = read_record(bench.layout.cell(cell) / "training.json")
    assert "is not finite" in record["diverged"]["reason"]
    assert not (bench.layout.weights(cell) / "adapter_model.safetensors").exists()


def test_what_goes_on_from_a_diverged_training_has_diverged(bench, monkeypatch):
    from mola_core.training import trainer

    bench = bench(
        tasks=["cola"],
        methods=["base", "lora-r4"],
        seeds=[0],
        instruction={"epochs": 1, "documents": 16, "warmup_steps": 0},
    )
    parent, cell = bench.study.cell("instruction", "lora-r4", 0), bench.study.cell("cola", "lora-r4", 0)
    original = trainer.CellTrainer.compute_loss
    monkeypatch.setattr(
        trainer.CellTrainer, "compute_loss", lambda self, *a, **o: original(self, *a, **o) * float("nan")
    )
    bench.run(parent)
    bench.run(cell)
    record = read_record(bench.layout.cell(cell) / "training.json")
    assert record["diverged"]["reason"] == f"{parent.path}, from which it goes on, diverged"
    before = read_record(bench.layout.cell(parent) / "training.json")
    for name in ("trainable_parameters", "base_parameters", "experts"):
        assert record[name] == before[name], "tables compare them over seeds"
    assert record["trainable_parameters"] > 0
    assert cell_state(bench.layout, cell) == "complete"


def test_another_model_than_the_studys_is_refused(bench):
    there, other = bench(), bench(model={"seed": 7})
    assert there.base.model is not None
    other.layout = dataclasses.replace(other.layout, model_folder=there.layout.model)
    with pytest.raises(MolaError, match="not the model of study"):
        other.run(other.study.cell("cola", "base", 0))


def test_run_does_every_open_cell_and_nothing_twice(bench):
    bench = bench(tasks=["cola"], methods=["base", "mola-2468"], seeds=[0])
    outcomes = run(bench.layout, parallel=2, keep_adapters=False)
    assert {outcome.state for outcome in outcomes} == {"complete"}, outcomes
    assert len(results_of(bench.layout)) == 9
    assert run(bench.layout) == []
    stopped = Layout(smoke(tasks=["cola"], methods=["base", "lora-r4"], seeds=[0]), bench.layout.root)
    assert {outcome.state for outcome in run(stopped, time_budget=1e-9)} == {"out of time"}
