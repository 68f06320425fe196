# A cell is one (task, method, seed); instead of a task it may have the name of a stage: instruction,
# continual-1-biology, ... Its digest in `params` reruns it when, and only when, what decides it changes.
from mola_core.methods.registry import parse_method


def training_of(wildcards):
    if study.method_by_label[wildcards.method].method == "base":
        return []
    return folder("cells/{task}/{method}/seed{seed}/training.json")


def parent_of(wildcards):
    """The training that this cell goes on from, if any."""
    parent = study.parent(named_cell(wildcards))
    return layout.cell(parent) / "training.json" if parent else []


def trained_on(wildcards):
    return ancient(
        layout.data(study.trained_on(named_cell(wildcards))) / "fingerprint.json"
    )


def evaluated_on(wildcards):
    tasks = study.evaluated_on(named_cell(wildcards))
    return [ancient(layout.data(task) / "fingerprint.json") for task in tasks]


def quality_of(wildcards):
    """The scores of the base model's layers, where they decide the experts; nothing else waits for them."""
    method = parse_method(study.method_by_label[wildcards.method])
    return ancient(layout.quality) if method.allocation == "alphalora" else []


# The adapter stands beside training.json, which holds its hash, but is not declared: cells that were trained on
# another machine are complete without their adapters.
rule train:
    input:
        model=ancient(layout.model / "model.json"),
        data=trained_on,
        parent=parent_of,
        quality=quality_of,
    output:
        log=folder("cells/{task}/{method}/seed{seed}/train.jsonl"),
        record=folder("cells/{task}/{method}/seed{seed}/training.json"),
    log:
        folder("logs/train/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/train/{task}/{method}/seed{seed}.tsv")
    threads: compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: int(1024 * compute.memory_gb * attempt),
        runtime=lambda wildcards, attempt: int(60 * compute.hours * attempt),
        gpu=compute.gpus,
    params:
        digest=lambda wildcards: digests[named_cell(wildcards)].training,
    shell:
        "{mola} train {options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee {log:q}"


rule evaluate:
    input:
        model=ancient(layout.model / "model.json"),
        data=evaluated_on,
        training=training_of,
    output:
        samples=folder("cells/{task}/{method}/seed{seed}/samples.parquet"),
        manifest=folder("cells/{task}/{method}/seed{seed}/manifest.json"),
    log:
        folder("logs/evaluate/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/evaluate/{task}/{method}/seed{seed}.tsv")
    threads: compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: int(1024 * compute.memory_gb * attempt),
        runtime=lambda wildcards, attempt: int(60 * compute.hours * attempt),
        gpu=min(1, compute.gpus),
    params:
        digest=lambda wildcards: digests[named_cell(wildcards)].evaluation,
    shell:
        "{mola} evaluate {options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee {log:q}"
