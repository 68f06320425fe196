# A cell is one (task, method, seed); instead of a task it may have the name of a stage: instruction,
# continual-1-biology, ... Each job makes a small file with the key that the cell then has; the records beside it are not
# declared, since Snakemake deletes what is declared before a job: so a job whose work is there already ends at once.
# One process trains and evaluates a cell (rule cell, or cells_0, cells_1, ... for several cells each); what is only trained,
# only evaluated, trained on several cards, or continued from has jobs of its own (rules train and evaluate).
from mola_core.methods.registry import needs_layer_quality
from mola_core.runs.layout import EVALUATED, TRAINED


def training_of(wildcards):
    if named_cell(wildcards).is_base:
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
    return [examples_of(rows) for rows in study.rows_of_training(named_cell(wildcards))]


def evaluated_on(wildcards):
    return [examples_of(task) for task in study.evaluated_on(named_cell(wildcards))]


def quality_of(cells, of=study):
    """The scores of the base model's layers, for cells whose experts they decide; nothing else waits for them."""
    decides = any(
        needs_layer_quality(of.method_by_label[cell.method]) for cell in cells
    )
    return [ancient(layout.quality)] if decides else []


def current(cell):
    return planned.trained(cell) and planned.evaluated(cell)


def keys_of(cells, of=layout):
    """The files that say that cells are trained and evaluated."""
    return [
        str(of.cell(cell) / name) for cell in cells for name in (TRAINED, EVALUATED)
    ]


def named(cells):
    return " ".join(f"--cell {cell.task} {cell.method} {cell.seed}" for cell in cells)


together = study.in_one_job()


if compute.cells_per_job == 1:

    # Where there is no such cell the constraints match nothing.
    rule cell:
        input:
            model=ancient(layout.model / "model.json"),
            examples=lambda wildcards: [
                *trained_on(wildcards),
                *evaluated_on(wildcards),
            ],
            parent=parent_of,
            quality=lambda wildcards: quality_of([named_cell(wildcards)]),
            rates=lambda wildcards: chosen_rates(),
            needed=lambda wildcards: unless(current(named_cell(wildcards))),
        output:
            folder(f"cells/{{task}}/{{method}}/seed{{seed}}/{TRAINED}"),
            folder(f"cells/{{task}}/{{method}}/seed{{seed}}/{EVALUATED}"),
        log:
            folder("logs/cell/{task}/{method}/seed{seed}.log"),
        benchmark:
            folder("benchmarks/cell/{task}/{method}/seed{seed}.tsv")
        wildcard_constraints:
            task="|".join(sorted({cell.task for cell in together})) or "(?!)",
            method="|".join(sorted({cell.method for cell in together})) or "(?!)",
        threads: compute.threads
        resources:
            mem_mb=memory,
            runtime=runtime(),
            gpu=compute.gpus,
        params:
            mola=mola,
            options=options,
        shell:
            "{params.mola} cell {params.options} --cell {wildcards.task} {wildcards.method} {wildcards.seed}"
            " 2>&1 | tee -i {log:q}"

    ruleorder: cell > train > evaluate

else:
    # Alike in every process of a run, whatever is finished by then: jobs on a cluster read this file again.
    for number, batch in enumerate(study.jobs()):

        rule:
            name:
                f"cells_{number}"
            input:
                model=ancient(layout.model / "model.json"),
                examples=[examples_of(rows) for rows in study.rows_of(batch)],
                parents=[
                    once_made(
                        str(layout.cell(parent) / TRAINED), planned.trained(parent)
                    )
                    for parent in study.parents_of(batch)
                ],
                quality=quality_of(batch),
                rates=chosen_rates(),
                needed=unless(all(current(cell) for cell in batch)),
            output:
                keys_of(batch),
            log:
                folder(f"logs/cells/{number}.log"),
            benchmark:
                folder(f"benchmarks/cells/{number}.tsv")
            threads: compute.threads
            resources:
                mem_mb=memory,
                runtime=runtime(len(batch)),
                gpu=compute.gpus,
            params:
                mola=mola,
                options=options,
                cells=named(batch),
            shell:
                "{params.mola} cell {params.options} {params.cells} 2>&1 | tee -i {log:q}"


rule train:
    input:
        model=ancient(layout.model / "model.json"),
        examples=trained_on,
        parent=parent_of,
        quality=lambda wildcards: quality_of([named_cell(wildcards)]),
        rates=lambda wildcards: chosen_rates(),
        needed=lambda wildcards: unless(planned.trained(named_cell(wildcards))),
    output:
        folder(f"cells/{{task}}/{{method}}/seed{{seed}}/{TRAINED}"),
    log:
        folder("logs/train/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/train/{task}/{method}/seed{seed}.tsv")
    threads: compute.threads
    resources:
        mem_mb=memory,
        runtime=runtime(),
        gpu=compute.gpus,
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} train {params.options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee -i {log:q}"


rule evaluate:
    input:
        model=ancient(layout.model / "model.json"),
        examples=evaluated_on,
        training=training_of,
        needed=lambda wildcards: unless(planned.evaluated(named_cell(wildcards))),
    output:
        folder(f"cells/{{task}}/{{method}}/seed{{seed}}/{EVALUATED}"),
    log:
        folder("logs/evaluate/{task}/{method}/seed{seed}.log"),
    benchmark:
        folder("benchmarks/evaluate/{task}/{method}/seed{seed}.tsv")
    threads: compute.threads
    resources:
        mem_mb=memory,
        runtime=runtime(),
        gpu=min(1, compute.gpus),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} evaluate {params.options} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed}"
        " 2>&1 | tee -i {log:q}"
