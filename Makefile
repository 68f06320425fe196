# Each target sets up .venv first. PYTHON picks the interpreter (3.11 or 3.12).
PYTHON ?= python3
STUDY ?= quickstart
CORES ?= all
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: study test lint report clean
.DEFAULT_GOAL := study

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

study: $(BIN)/.ready
	snakemake --cores $(CORES) --config study=$(STUDY)
	@mola where --study $(STUDY)

test: $(BIN)/.ready
	python -m pytest

lint: $(BIN)/.ready
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mola schema | diff - workflow/schemas/study.json

report: $(BIN)/.ready
	snakemake --cores 1 --config study=$(STUDY) --report results/$(STUDY)/report.html
	if command -v chromium >/dev/null; then python tests/open_pages.py results/$(STUDY)/*.html; fi

clean:
	rm -rf .venv
