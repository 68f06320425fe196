"""A finished study on disk without a model: cells whose answers are drawn at random from known accuracies.

The files are those that `mola_core.runs.cell` writes, so that everything after the cells can be tested in seconds.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from mola_core.files import sha256_file, write_json, write_text
from mola_core.methods.families.prompt import VIRTUAL_TOKENS
from mola_core.methods.registry import layer_experts, parse_method
from mola_core.models.loading import model_identity
from mola_core.records import digest, read_record, write_record
from mola_core.runs.key import evaluation_parts, examples_identity, keys, training_parts
from mola_core.runs.layout import Layout
from mola_core.shapes import centre_of_depth, lora_parameters, mola_parameters
from mola_core.study.effective import effective_training
from mola_core.study.study import Cell, Study
from mola_core.tasks import COLUMNS, PARTS
from mola_core.tasks.examples import _write as write_rows

MODULES = {"self_attn.q_proj": (0, 0), "self_attn.k_proj": (0, 0), "self_attn.v_proj": (0, 0)} | {
    "self_attn.o_proj": (0, 0),
    "mlp.gate_proj": (0, 1),
    "mlp.up_proj": (0, 1),
    "mlp.down_proj": (1, 0),
}
"""Module and whether its input and output have the hidden (0) or the inner (1) width."""
OPTIONS = {"cola": 2, "mrpc": 2, "rte": 2, "scienceqa": 3, "commonsenseqa": 5, "openbookqa": 4}


def make_study(**changes) -> Study:
    content = {
        "name": "simulated",
        "description": "a simulated study",
        "model": {"name": "tiny", "source": "random", "layers": 8},
        "data": {"source": "builtin"},
        "tasks": ["cola", "scienceqa"],
        "methods": ["base", "lora-r40", "lora-matched-2468", "mola-2468", "mola-8642"],
        "seeds": [0, 1, 2],
        "training": {"warmup_steps": 1},
    }
    return Study.model_validate(content | changes)


def simulate(root: Path, study: Study, documents: int = 120, width: int = 32, layers: int = 8) -> Layout:
    """Write the base model's tensors and every cell of `study` below `root`."""
    layout = Layout(study, root)
    inner = 2 * width
    write_base_model(layout.model, width, inner, layers)
    pretend_prepared(layout, layers, documents)
    for cell in study.cells():
        write_cell(layout, cell, documents, width, inner, layers)
    for cell in study.continual_cells():
        write_continual_cell(layout, cell, documents)
    return layout


def write_base_model(folder: Path, width: int, inner: int, layers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = (width, inner)
    tensors = {
        f"model.layers.{layer}.{name}.weight": np.zeros((sizes[out], sizes[into]), dtype=np.float16)
        for layer in range(layers)
        for name, (into, out) in MODULES.items()
    }
    tensors["model.embed_tokens.weight"] = np.zeros((64, width), dtype=np.float16)
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", {"num_hidden_layers": layers, "hidden_size": width})


def pretend_prepared(layout: Layout, layers: int, documents: int) -> None:
    """Records of a prepared model, rows and examples: as much as the cells' keys are made of."""
    files = {file.name: sha256_file(file) for file in layout.model.iterdir() if file.name != "model.json"}
    identity = model_identity(layout.study.model)
    write_json(layout.model / "model.json", {"identity": identity, "depth": layers, "files": files})
    for name in layout.study.rows():
        write_json(layout.data(name) / "fingerprint.json", {"splits": {}})
        folder = layout.examples(name)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {}
        for part in PARTS:
            write_rows(
                folder / f"{part}.parquet",
                [_example(document) for document in document_names(name, documents)],
            )
            parts[part] = {"documents": 400, "held_out": 0, "cut": 0} | {
                "sha256": sha256_file(folder / f"{part}.parquet")
            }
        write_json(folder / "examples.json", {"identity": examples_identity(layout, name), "parts": parts})


def document_names(task: str, documents: int) -> list[str]:
    """Names in the order of the examples, which is not that of the alphabet."""
    return [f"{task}-{k * 7919 % 10007:05d}" for k in range(documents)]


def _example(document: str) -> dict:
    own = {"document": document, "options": [], "held_out": False, "tokens": 1, "cut": 0}
    return dict.fromkeys(COLUMNS) | own


def trainable_parameters(study: Study, method: str, width: int, inner: int, layers: int) -> int:
    settings = study.method_by_label[method]
    kind, sizes = parse_method(settings), (width, inner)
    modules = [(sizes[into], sizes[out]) for into, out in MODULES.values()]
    rank = settings.adapter(study.adapter).rank
    experts = layer_experts(settings, layers)
    if kind.kind == "mola":
        return mola_parameters(experts, modules, rank)
    if kind.kind == "full":
        return layers * sum(d_in * d_out for d_in, d_out in modules)
    if experts is None and kind.rank is None:
        return VIRTUAL_TOKENS * width
    return lora_parameters(
        [kind.rank] * layers if kind.rank else [rank * count for count in experts], modules
    )


def write_cell(layout: Layout, cell: Cell, documents: int, width: int, inner: int, layers: int) -> None:
    study, folder = layout.study, layout.cell(cell)
    folder.mkdir(parents=True, exist_ok=True)
    settings = study.method_by_label[cell.method]
    base = settings.method == "base"
    options = OPTIONS.get(cell.task, 4)
    # Documents and how hard they are belong to the task, answers to the cell.
    task_rng = np.random.default_rng([1, *cell.task.encode()])
    difficulty, targets = task_rng.normal(size=documents), task_rng.integers(options, size=documents)
    rng = np.random.default_rng([cell.seed, *cell.path.encode()])
    experts = None if base else layer_experts(settings, layers)
    effect = (
        0.0
        if base
        else 1.5 + (0.8 * (centre_of_depth(experts) - 0.5) if experts else 0) + rng.normal(scale=0.08)
    )
    correct = (rng.logistic(scale=0.5, size=documents) < effect - difficulty).astype(int)
    samples = pd.DataFrame(
        {
            "document": document_names(cell.task, documents),
            "position": range(documents),
            "target": [str(target) for target in targets],
            "correct": correct,
            "prompt_hash": [f"prompt-{k}" for k in range(documents)],
            "answer": [str(t if c else (t + 1) % options) for t, c in zip(targets, correct, strict=True)],
            "loglikelihoods": _options(targets, correct, options, rng),
        }
    )
    samples.to_parquet(folder / "samples.parquet", index=False)
    names = keys(layout, cell)
    environment = {
        "versions": {"python": "3.11", "mola-core": "0.2.0"},
        "git": {"commit": "0" * 40, "dirty": False},
    } | {
        "device": "simulated",
        "threads": 1,
        "platform": "linux x86_64",
    }
    training = None
    if not base:
        training = {
            "key": names.training,
            "parts": training_parts(layout, cell),
            "settings": effective_training(study, cell, method=settings).model_dump(mode="json"),
            "trainable_parameters": trainable_parameters(study, cell.method, width, inner, layers),
            "base_parameters": 134_515_008,
            "experts": experts if parse_method(settings).kind == "mola" else None,
            "adapter_sha256": "0" * 64,
            **_write_log(folder / "train.jsonl", effect, rng),
            "log_sha256": sha256_file(folder / "train.jsonl"),
            **environment,
        }
        write_record(folder / "training.json", training)
    accuracy = float(correct.mean())
    metrics = {"acc": accuracy} | (
        {"mcc": float(np.corrcoef(correct, targets)[0, 1])} if cell.task == "cola" else {}
    )
    manifest = {
        "study": study.name,
        "model": study.model.name,
        "task": cell.task,
        "method": cell.method,
        "seed": cell.seed,
        "training_key": names.training,
        "evaluation_key": names.evaluation,
        "stand_in": study.stand_in,
        "settings": {},
        "parts": evaluation_parts(layout, cell, names.training),
        "model_files": {"identity": model_identity(study.model), "depth": layers},
        "data_files": {},
        "training": training,
        "evaluation": {
            "documents": documents,
            "accuracy": accuracy,
            "metrics": metrics,
            "seconds": 12.5,
            "documents_per_second": documents / 12.5,
            **environment,
        },
        "samples_sha256": sha256_file(folder / "samples.parquet"),
        "finished": "2026-01-01T00:00:00+00:00",
    }
    write_record(folder / "manifest.json", manifest)


def rewrite_records(layout: Layout, cell: Cell, change) -> None:
    """Change a cell's records, then make the keys and copies in them agree again, as the code that wrote them did."""
    folder = layout.cell(cell)
    manifest, training = read_record(folder / "manifest.json"), None
    if manifest["training"]:
        training = read_record(folder / "training.json")
    change(training, manifest)
    if training:
        training["key"] = digest(training["parts"])
        write_record(folder / "training.json", training)
        manifest["parts"]["training"] = manifest["training_key"] = training["key"]
        manifest["training"] = training
    manifest["evaluation_key"] = digest(manifest["parts"])
    write_record(folder / "manifest.json", manifest)


def other_code(training, manifest) -> None:
    """A change of `rewrite_records`: as if another version had made the cell."""
    for record in (training, manifest):
        if record:
            record["parts"]["code"] = "c" * 64


def _options(targets, correct, options: int, rng: np.random.Generator) -> list[list[float]]:
    """Log-likelihoods of each document's options whose largest is at the target where it was answered right."""
    rows = []
    for target, hit in zip(targets, correct, strict=True):
        row = -np.sort(rng.exponential(size=options))
        best = target if hit else (target + 1) % options
        rest = iter(row[1:])
        rows.append([float(row[0]) if place == best else float(next(rest)) for place in range(options)])
    return rows


def write_continual_cell(layout: Layout, cell: Cell, documents: int) -> None:
    """A stage of continual learning: the samples of all of its tasks, with their names."""
    folder = layout.cell(cell)
    rng = np.random.default_rng([cell.seed, *cell.path.encode()])
    tasks = layout.study.evaluated_on(cell)
    samples = pd.DataFrame({"task": np.repeat(tasks, documents)})
    samples["document"] = [f"{task}-{k}" for task in tasks for k in range(documents)]
    samples["correct"] = (rng.random(len(samples)) < 0.8).astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    samples.to_parquet(folder / "samples.parquet", index=False)
    manifest = {"evaluation_key": keys(layout, cell).evaluation}
    write_record(
        folder / "manifest.json", manifest | {"samples_sha256": sha256_file(folder / "samples.parquet")}
    )


def _write_log(path: Path, effect: float, rng: np.random.Generator, steps: int = 200) -> dict[str, float]:
    loss = 0.25 + 1.2 * np.exp(-effect * np.arange(1, steps + 1) / 40) + rng.normal(scale=0.05, size=steps)
    lines = [
        {
            "loss": round(float(value), 4),
            "grad_norm": 1.0,
            "learning_rate": 1e-4,
            "epoch": round(step / 50, 4),
        }
        | {"tokens": 800 * step, "seconds": 6.5 * step, "step": step}
        for step, value in enumerate(loss, start=1)
    ]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return {
        "documents": 400,
        "steps": steps,
        "epochs": steps / 50,
        "tokens": 800 * steps,
        "seconds": 6.5 * steps,
        "tokens_per_second": round(800 / 6.5, 2),
        "final_loss": float(lines[-1]["loss"]),
        "peak_memory_bytes": 2_000_000_000,
        "resumed": False,
    }
