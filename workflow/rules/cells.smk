# A cell is one (task, method, seed); instead of a task it may have the name of a stage: instruction,
# continual-1-biology, ... Each job makes a small file with the key that the cell then has; the records beside it are not
# declared, since Snakemake deletes what is declared before a job: so a job whose work is there already ends at once.
from mola_core.methods.registry import parse_method
from mola_core.runs.cell import EVALUATED, TRAINED


def training_of(wildcards):
    if study.method_by_label[wildcards.method].method == "base":
        return []
    cell = named_cell(wildcards)
    return once_made(str(layout.cell(cell) / TRAINED), planned.trained(cell))


def parent_of(wildcards):
    """The training that this cell goes on from, if any."""
    parent = study.parent(named_cell(wildcards))
    if parent is None:
        return []
    return once_made(str(layout.cell(parent) / TRAINED), planned.trained(parent))


def examples_of(rows):
    return once_made(
        str(layout.examples(rows) / "examples.json"), planned.rendered(rows)
    )


def trained_on(wildcards):
    cell, found = named_cell(wildcards), []
    while cell:
        found.append(examples_of(study.trained_on(cell)))
        cell = study.parent(cell)
    return found


def evaluated_on(wildcards):
    return [examples_of(task) for task in study.evaluated_on(named_cell(wildcards))]


def quality_of(wildcards):
    """The scores of the base model's layers, where they decide the experts; nothing else waits for them."""
    method = parse_method(study.method_by_label[wildcards.method])
    return ancient(layout.quality) if method.allocation == "alphalora" else []


rule train:
    input:
        model=ancient(layout.model / "model.json"),
        examples=trained_on,
        parent=parent_of,
        quality=quality_of,
        needed=lambda wildcards: unless(planned.trained(named_cell(wildcards))),
    output:
        folder("cells/{task}/{method}/seed{seed}/" + TRAINED),
    log:
        folder("logs/train/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/train/{task}/{method}/seed{seed}.tsv")
    threads: compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: int(1024 * compute.memory_gb * attempt),
        runtime=lambda wildcards, attempt: int(60 * compute.hours * attempt),
        gpu=compute.gpus,
    shell:
        "{mola} train {options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee {log:q}"


rule evaluate:
    input:
        model=ancient(layout.model / "model.json"),
        examples=evaluated_on,
        training=training_of,
        needed=lambda wildcards: unless(planned.evaluated(named_cell(wildcards))),
    output:
        folder("cells/{task}/{method}/seed{seed}/" + EVALUATED),
    log:
        folder("logs/evaluate/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/evaluate/{task}/{method}/seed{seed}.tsv")
    threads: compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: int(1024 * compute.memory_gb * attempt),
        runtime=lambda wildcards, attempt: int(60 * compute.hours * attempt),
        gpu=min(1, compute.gpus),
    shell:
        "{mola} evaluate {options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee {log:q}"
