# Tuning: every try is a training that is scored on validation; from all of them each method's learning rate is chosen, and
# the cells wait for it. A study without the section `tuning` has none of this.

if layout.tries is not None:
    for number, batch in enumerate(layout.tries.study.jobs()):

        rule:
            name:
                f"tries_{number}"
            input:
                model=ancient(layout.model / "model.json"),
                examples=[examples_of(rows) for rows in study.tasks],
                quality=quality_of(batch, layout.tries.study),
                needed=unless(all(planned.tried(cell) for cell in batch)),
            output:
                keys_of(batch, layout.tries),
            log:
                folder(f"logs/tuning/{number}.log"),
            benchmark:
                folder(f"benchmarks/tuning/{number}.tsv")
            threads: compute.threads
            resources:
                mem_mb=memory,
                runtime=runtime(len(batch)),
                gpu=min(1, compute.gpus),
            params:
                mola=mola,
                options=options,
                tries=" ".join(
                    f"--try {cell.task} {cell.method} {cell.seed}" for cell in batch
                ),
            shell:
                "{params.mola} tuning {params.options} {params.tries} 2>&1 | tee -i {log:q}"

    rule tuning:
        input:
            [
                once_made(
                    str(layout.tries.cell(cell) / EVALUATED), planned.tried(cell)
                )
                for cell in layout.tries.study.cells()
            ],
            needed=unless(planned.tuned),
        output:
            folder(TUNING),
            folder(TABLE),
        log:
            folder("logs/tuning.log"),
        params:
            mola=mola,
            options=options,
        shell:
            "{params.mola} tuning {params.options} 2>&1 | tee -i {log:q}"
