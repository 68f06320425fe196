# What is read from trained adapters and from the base model's weights. Not part of `all`: cells that were trained on
# another machine may be here without their adapters. `snakemake --cores N analysis` makes it all.
from mola_core.analysis.experts.knock_out import (
    FIGURES as KNOCK_OUT_FIGURES,
    knocked_out_cells,
)
from mola_core.analysis.experts.quality import FIGURES as QUALITY_FIGURES
from mola_core.analysis.experts.redundancy import (
    FIGURES as REDUNDANCY_FIGURES,
    mola_cells,
)
from mola_core.analysis.experts.routing import FIGURES as ROUTING_FIGURES, routed_cells


rule routing:
    input:
        ancient(layout.model / "model.json"),
        evaluated_on,
        training_of,
        needed=lambda wildcards: unless(current(named_cell(wildcards))),
    output:
        folder("cells/{task}/{method}/seed{seed}/routing.csv"),
    log:
        folder("logs/routing/{task}/{method}/seed{seed}.log"),
    threads: compute.threads
    resources:
        mem_mb=int(1024 * compute.memory_gb),
        runtime=int(60 * compute.hours),
        gpu=min(1, compute.gpus),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} routing {params.options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee -i {log:q}"


rule routing_figures:
    input:
        [str(layout.cell(cell) / "routing.csv") for cell in routed_cells(study)],
    output:
        folder("routing.csv"),
        folder("routing.parquet"),
        report(
            expand(folder("figures/{figure}.svg"), figure=ROUTING_FIGURES),
            caption="../report/analysis.rst",
            category="5 Analysis",
        ),
        expand(folder("figures/{figure}.png"), figure=ROUTING_FIGURES),
    log:
        folder("logs/routing.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} routing {params.options} 2>&1 | tee -i {log:q}"


rule knockout:
    input:
        ancient(layout.model / "model.json"),
        evaluated_on,
        training_of,
        needed=lambda wildcards: unless(current(named_cell(wildcards))),
    output:
        folder("cells/{task}/{method}/seed{seed}/knockout.csv"),
    log:
        folder("logs/knockout/{task}/{method}/seed{seed}.log"),
    threads: compute.threads
    resources:
        mem_mb=int(1024 * compute.memory_gb),
        runtime=int(60 * compute.hours),
        gpu=min(1, compute.gpus),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} knockout {params.options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee -i {log:q}"


rule knockout_figures:
    input:
        [str(layout.cell(cell) / "knockout.csv") for cell in knocked_out_cells(study)],
    output:
        folder("knockout.csv"),
        report(
            expand(folder("figures/{figure}.svg"), figure=KNOCK_OUT_FIGURES),
            caption="../report/analysis.rst",
            category="5 Analysis",
        ),
        expand(folder("figures/{figure}.png"), figure=KNOCK_OUT_FIGURES),
    log:
        folder("logs/knockout.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} knockout {params.options} 2>&1 | tee -i {log:q}"


rule redundancy:
    input:
        [
            once_made(str(layout.cell(cell) / TRAINED), planned.trained(cell))
            for cell in mola_cells(study)
        ],
    output:
        folder("redundancy.csv"),
        folder("redundancy.parquet"),
        report(
            expand(folder("figures/{figure}.svg"), figure=REDUNDANCY_FIGURES),
            caption="../report/analysis.rst",
            category="5 Analysis",
        ),
        expand(folder("figures/{figure}.png"), figure=REDUNDANCY_FIGURES),
    log:
        folder("logs/redundancy.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} redundancy {params.options} 2>&1 | tee -i {log:q}"


# Once for a base model, whatever the study; cells of `alphalora` methods wait for it.
rule layer_quality:
    input:
        ancient(layout.model / "model.json"),
    output:
        layout.quality,
    log:
        folder("logs/layer_quality.log"),
    threads: compute.threads
    resources:
        mem_mb=int(1024 * compute.memory_gb),
        gpu=min(1, compute.gpus),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} layers {params.options} --scores-only 2>&1 | tee -i {log:q}"


rule layer_figures:
    input:
        layout.quality,
        folder("redundancy.parquet"),
    output:
        folder("layer_quality.csv"),
        folder("quality.csv"),
        folder("quality.parquet"),
        report(
            expand(folder("figures/{figure}.svg"), figure=QUALITY_FIGURES),
            caption="../report/analysis.rst",
            category="5 Analysis",
        ),
        expand(folder("figures/{figure}.png"), figure=QUALITY_FIGURES),
    log:
        folder("logs/layers.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} layers {params.options} 2>&1 | tee -i {log:q}"


rule analysis:
    input:
        rules.routing_figures.output,
        rules.knockout_figures.output,
        rules.redundancy.output,
        rules.layer_figures.output,
