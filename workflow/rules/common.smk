import logging
import re
import shlex

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from mola_core.files import locked
from mola_core.runs.choice import TABLE, TUNING
from mola_core.runs.gpus import check_cards

# What every rule uses: the `mola` command of this environment, the study's options and paths.
# A path that a user gives may hold anything that a shell would read; names of a study hold letters, digits, ._- only.
mola = shlex.join([sys.executable, "-m", "mola_core.cli"])
options = shlex.join(planned.options)
compute = study.compute


def folder(name):
    """A file of this study's results."""
    return str(layout.folder / name)


def named_cell(wildcards):
    return study.cell(wildcards.task, wildcards.method, wildcards.seed)


def unless(current):
    """An input that is newer than anything there: it makes a job necessary unless what it would make is current."""
    return [] if current or not planned.marker.is_file() else str(planned.marker)


def once_made(files, current):
    """An input that is waited for where it is made again, and whose time means nothing where it is not."""
    return ancient(files) if current else files


def memory(wildcards, attempt):
    """MiB of a job; more at each attempt, as its time."""
    return int(1024 * compute.memory_gb * attempt)


def runtime(cells=1):
    """Minutes of a job of so many cells."""
    return lambda wildcards, attempt: int(60 * compute.hours * cells * attempt)


def chosen_rates():
    """What tuned cells are trained with, where it is chosen."""
    if layout.tries is None:
        return []
    return once_made(folder(TUNING), planned.tuned)


wildcard_constraints:
    task="|".join(sorted({*study.rows(), *(cell.task for cell in study.all_cells())})),
    method="|".join(method.label for method in study.methods),
    seed=r"\d+",


# One run at a time works on a study. The kernel holds this lock for the process: unlike Snakemake's own, which the
# default profile switches off, a killed run leaves none behind. Jobs do not take it, nor do dry runs.
one_run = locked(layout.folder / ".lock", wait=False)


onstart:
    if workflow.is_main_process:
        try:
            if workflow.local_exec:
                check_cards(compute.gpus)
            one_run.__enter__()
        except MolaError as error:
            raise WorkflowError(str(error))


class Told(logging.Filter):
    """Tells in one line, not in blocks of errors, that Ctrl-C or a time limit stopped jobs (exit codes 130 and 143), and
    nothing of what Snakemake says between any two jobs and after the answer, whatever `--quiet` asks for.
    """

    chatter = re.compile(
        r"Select jobs to execute\.\.\.|Execute \d+ jobs\.\.\.|(Complete log\(s\)|Elapsed time): .*"
    )
    stopped = blocks = failed = 0

    def filter(self, record):
        text = record.getMessage()
        if record.levelno < logging.ERROR:
            return bool(self.failed) or not self.chatter.fullmatch(text)
        if re.search(r"non-zero exit status (130|143)\b", text):
            self.stopped, self.blocks = self.stopped + 1, self.blocks + 1
            return False
        if self.blocks and getattr(record, "event", None) is LogEvent.JOB_ERROR:
            self.blocks -= 1
            return False
        if "At least one job did not complete successfully" in text:
            if self.stopped and not self.failed:
                record.msg, record.args = (
                    "Stopped; the same command goes on from here.",
                    (),
                )
            return True
        self.failed += 1
        return True


logger.addFilter(Told())
