# The base model and the tasks' rows, pinned and fingerprinted. Both are shared by all studies.


rule model:
    output:
        layout.model / "model.json",
    log:
        folder("logs/model.log"),
    resources:
        mem_mb=int(1024 * compute.memory_gb),
    params:
        identity=digest(model_identity(study.model)),
    shell:
        "{mola} model {options} 2>&1 | tee {log:q}"


rule data:
    output:
        layout.root / "data" / "{store}" / "{task}" / "fingerprint.json",
    log:
        folder("logs/data/{store}/{task}.log"),
    params:
        identity=lambda wildcards: digest(rows_identity(study, wildcards.task)),
    shell:
        "{mola} data {options} --task {wildcards.task} 2>&1 | tee {log:q}"


# Everything that needs a network, for a login node; compute nodes then run offline.
rule prefetch:
    input:
        rules.model.output,
        [layout.data(task) / "fingerprint.json" for task in study.rows()],
