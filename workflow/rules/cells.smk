# A cell is one (task, method, seed). Its digest in `params` reruns it when, and only when, what decides it changes.


def training_of(wildcards):
    if study.method_by_label[wildcards.method].method == "base":
        return []
    return folder("cells/{task}/{method}/seed{seed}/training.json")


# The adapter stands beside training.json, which holds its hash, but is not declared: cells that were trained on
# another machine are complete without their adapters.
rule train:
    input:
        model=ancient(layout.model / "model.json"),
        data=lambda wildcards: ancient(layout.data(wildcards.task) / "fingerprint.json"),
    output:
        log=folder("cells/{task}/{method}/seed{seed}/train.jsonl"),
        record=folder("cells/{task}/{method}/seed{seed}/training.json"),
    log:
        folder("logs/train/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/train/{task}/{method}/seed{seed}.tsv")
    params:
        digest=lambda wildcards: digests[named_cell(wildcards)].training,
    threads: compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: int(1024 * compute.memory_gb * attempt),
        runtime=lambda wildcards, attempt: int(60 * compute.hours * attempt),
        gpu=compute.gpus,
    shell:
        "{mola} train {options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee {log}"


rule evaluate:
    input:
        model=ancient(layout.model / "model.json"),
        data=lambda wildcards: ancient(layout.data(wildcards.task) / "fingerprint.json"),
        training=training_of,
    output:
        samples=folder("cells/{task}/{method}/seed{seed}/samples.parquet"),
        manifest=folder("cells/{task}/{method}/seed{seed}/manifest.json"),
    log:
        folder("logs/evaluate/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/evaluate/{task}/{method}/seed{seed}.tsv")
    params:
        digest=lambda wildcards: digests[named_cell(wildcards)].evaluation,
    threads: compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: int(1024 * compute.memory_gb * attempt),
        runtime=lambda wildcards, attempt: int(60 * compute.hours * attempt),
        gpu=compute.gpus,
    shell:
        "{mola} evaluate {options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee {log}"
