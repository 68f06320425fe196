# From finished cells to what a person reads. Everything here is computed from the cells' files without a model.
import os

from mola_core.analysis.figures.study import FIGURES
from mola_core.analysis.figures.verdict import FIGURES as VERDICT_FIGURES
from mola_core.analysis.paper.catalogue import REANALYSIS, tables_of
from mola_core.analysis.tables.accuracy import TABLES
from mola_core.analysis.statistics.continual import FILE as CONTINUAL
from mola_core.locations import PACKAGE, snakefile
from mola_core.runs.layout import EVALUATED

evaluations = [
    once_made(str(layout.cell(cell) / EVALUATED), planned.evaluated(cell))
    for cell in study.all_cells()
    if study.evaluated_on(cell)
]


rule collect:
    input:
        evaluations,
        needed=unless(planned.collected),
    output:
        folder("scores.parquet"),
        folder("cells.csv"),
        folder("cells.parquet"),
        folder("curves.parquet"),
        folder("collected.json"),
        [folder(CONTINUAL)] if study.continual_cells() else [],
    log:
        folder("logs/collect.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} collect {params.options} 2>&1 | tee -i {log:q}"


rule tables:
    input:
        once_made(rules.collect.output, planned.collected),
        needed=unless(planned.analysed),
    output:
        report(
            expand(folder("tables/{table}.csv"), table=TABLES),
            caption="../report/tables.rst",
            category="2 Tables",
        ),
        expand(folder("tables/{table}.{kind}"), table=TABLES, kind=["md", "tex"]),
        expand(
            folder("tables/{table}.{kind}"),
            table=tables_of(study),
            kind=["md", "csv", "tex"],
        ),
        expand(
            folder("figures/continual.{kind}"),
            kind=["svg", "png"] if study.continual_cells() else [],
        ),
    log:
        folder("logs/tables.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} tables {params.options} 2>&1 | tee -i {log:q}"


rule figures:
    input:
        once_made(rules.collect.output, planned.collected),
        needed=unless(planned.analysed),
    output:
        report(
            expand(folder("figures/{figure}.svg"), figure=FIGURES),
            caption="../report/figures.rst",
            category="3 Figures",
        ),
        expand(folder("figures/{figure}.png"), figure=FIGURES),
    log:
        folder("logs/figures.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} figures {params.options} 2>&1 | tee -i {log:q}"


rule verdict:
    input:
        once_made(rules.collect.output, planned.collected),
        needed=unless(planned.analysed),
    output:
        folder("verdict.json"),
        folder("verdict.md"),
        expand(folder("tables/questions.{kind}"), kind=["csv", "md", "tex"]),
        report(
            expand(folder("figures/{figure}.svg"), figure=VERDICT_FIGURES),
            caption="../report/verdict.rst",
            category="4 Verdict",
        ),
        expand(folder("figures/{figure}.png"), figure=VERDICT_FIGURES),
    log:
        folder("logs/verdict.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} verdict {params.options} 2>&1 | tee -i {log:q}"


# The published numbers, put to the same questions; needs no cell, and is made again where code or numbers are newer.
rule reanalysis:
    input:
        sorted(map(str, (PACKAGE / "analysis").rglob("*.csv"))),
        sorted(map(str, (PACKAGE / "analysis").rglob("*.py"))),
    output:
        layout.root / "reanalysis" / "reanalysis.md",
        expand(str(layout.root / "reanalysis" / "{file}"), file=REANALYSIS),
    log:
        folder("logs/reanalysis.log"),
    params:
        mola=mola,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "{params.mola} reanalyse --out {params.folder:q} 2>&1 | tee -i {log:q}"


rule summary:
    input:
        once_made(rules.collect.output, planned.collected),
        once_made(rules.tables.output, planned.analysed),
        once_made(rules.figures.output, planned.analysed),
        once_made(rules.verdict.output, planned.analysed),
        needed=unless(planned.analysed),
    output:
        folder("summary.md"),
        folder("analysed.json"),
        report(
            folder("index.html"), caption="../report/summary.rst", category="1 Answer"
        ),
    log:
        folder("logs/summary.log"),
    params:
        mola=mola,
        options=options,
    shell:
        "{params.mola} summary {params.options} --all-made > {log:q} 2>&1"


# The answer is the last thing that a run says, so the rule above says nothing; a run that has nothing to do says it too.
def tell_answer():
    from mola_core.analysis.pages.answer import told

    own = os.path.samefile(workflow.main_snakefile, snakefile())  # not another's module
    if own and workflow.is_main_process and not workflow.dryrun:
        print(told(layout), flush=True)


onsuccess:
    tell_answer()


def answer_instead(record):
    if record.getMessage().startswith("Nothing to be done"):
        tell_answer()
    return True


logger.addFilter(answer_instead)
