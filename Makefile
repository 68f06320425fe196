# Each target sets up .venv first. PYTHON picks the interpreter (3.11 to 3.14).
PYTHON ?= python3
STUDY ?= quickstart
CORES ?= all
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: study test docs schema peft-suite fuzz load slurm-test lint report publish published clean
.DEFAULT_GOAL := study

INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

$(BIN)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))" 2>/dev/null || \
		{ echo "$(PYTHON) is no Python 3.11 to 3.14 with venv; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -e ".[harness]"
	touch $@

$(BIN)/.ready-to-test: $(BIN)/.ready
	$(BIN)/python $(INSTALL) -e ".[test,docs]"
	touch $@

study: $(BIN)/.ready
	snakemake --cores $(CORES) --quiet host rules progress --config study=$(STUDY)

# A process for each core, each with one thread.
test: $(BIN)/.ready-to-test
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile

# PEFT's own tests, from its source distribution, with MoLA in the place of LoRA (tests/peft_suite).
peft-suite: $(BIN)/.ready-to-test
	cd tests && python -m peft_suite

# Thousands of cases of every kind of bad input; `make test` tries some dozens.
fuzz: $(BIN)/.ready-to-test
	HYPOTHESIS_PROFILE=fuzz python -m pytest tests/test_fuzz.py

# Seconds and memory of large studies.
load: $(BIN)/.ready-to-test
	python tests/load.py

# Needs root and Debian's slurm-wlm and munge: a Slurm controller on this machine runs a study, a killed job included.
slurm-test: $(BIN)/.ready-to-test
	python $(INSTALL) -e ".[slurm]"
	PYTHON=python tests/slurm.sh

lint: $(BIN)/.ready-to-test
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy
	mola schema | diff - workflow/schemas/study.json

# The documentation as a web site in build/site; a broken link or a page outside the navigation is an error.
docs: $(BIN)/.ready-to-test
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

# The JSON schema of study files, from the study's sections and the methods' names: after a change of either.
schema: $(BIN)/.ready
	mkdir -p build
	mola schema > build/study.json
	mv build/study.json workflow/schemas/study.json

report: $(BIN)/.ready
	snakemake --cores 1 --config study=$(STUDY) --report results/$(STUDY)/report.html
	if command -v chromium >/dev/null; then python tests/open_pages.py results/$(STUDY)/*.html; fi

# A finished study's scores, records, looks, tries and knock-out into results/published, and all that follows from them.
publish: $(BIN)/.ready
	mkdir -p results/published/$(STUDY)
	cp results/$(STUDY)/*.parquet results/$(STUDY)/*.jsonl results/$(STUDY)/cells.csv results/published/$(STUDY)/
	cd results/$(STUDY) && cp --parents \
		$$(find . -path './cells/*' '(' -name manifest.json -o -name knockout.csv ')' -o -name 'tuning.*') ../published/$(STUDY)/
	$(MAKE) published STUDY=$(STUDY)

# Every table and figure of a published study again, from its published scores, without a model.
published: $(BIN)/.ready
	for verb in tables figures verdict summary; do mola $$verb --study $(STUDY) --results results/published || exit 1; done
	if [ -n "$$(find results/published/$(STUDY)/cells -name knockout.csv)" ]; then mola knockout --study $(STUDY) --results results/published; fi

clean:
	rm -rf .venv
