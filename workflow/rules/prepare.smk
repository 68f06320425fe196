# The base model, the tasks' rows and their examples. Model and rows are shared by all studies; their folders carry the
# first digits of what they were made from.


rule model:
    output:
        layout.model / "model.json",
    log:
        folder("logs/model.log"),
    resources:
        mem_mb=int(1024 * compute.memory_gb),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} model {params.options} 2>&1 | tee -i {log:q}"


rule data:
    output:
        layout.root / "data" / "{store}" / "{task}" / "fingerprint.json",
    log:
        folder("logs/data/{store}/{task}.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} data {params.options} --task {wildcards.task} 2>&1 | tee -i {log:q}"


rule examples:
    input:
        model=ancient(layout.model / "model.json"),
        rows=lambda wildcards: ancient(layout.data(wildcards.task) / "fingerprint.json"),
        needed=lambda wildcards: unless(planned.rendered(wildcards.task)),
    output:
        folder("examples/{task}/examples.json"),
    log:
        folder("logs/examples/{task}.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} examples {params.options} --task {wildcards.task} 2>&1 | tee -i {log:q}"


# Everything that needs a network, for a login node; compute nodes then run offline.
rule prefetch:
    input:
        rules.model.output,
        [layout.examples(task) / "examples.json" for task in study.rows()],
