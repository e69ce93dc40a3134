# The one task runner. PYTHON is the environment that `pip install -e ".[dev]"` went into.
PYTHON ?= python

.PHONY: help check unit test fuzz faults lint format docs bench audit sbom versions long mutants coverage
help:  ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

check:  ## everything CI runs, in this environment
	bash .ci/run $(PYTHON)

unit:  ## the tests as the README runs them: without the slow ones, which are real faces and long runs
	$(PYTHON) -m pytest

test:  ## all tests
	$(PYTHON) -m pytest -m ""

FUZZ ?= 100000
fuzz:  ## FUZZ mutated inputs for each format (hours), then the table of docs/reliability.md
	rm -f fuzz.log
	SPHERECF_FUZZ=$(FUZZ) SPHERECF_FUZZ_RESULTS=$(CURDIR)/fuzz.log $(PYTHON) -m pytest tests/fuzz
	$(PYTHON) tests/fuzz/harness.py fuzz.log

TRIALS ?= 200
faults:  ## TRIALS attacks of each kind on each command (hours): kill -9, full disks, power cuts and others
	$(PYTHON) -m tests.faults.harness --trials $(TRIALS)

VERSIONS ?= python3.11,2.6.0,2.0.* python3.11,newest,newest
versions:  ## the suite on each PYTHON,TORCH,NUMPY of VERSIONS, in environments under runs/versions (gigabytes)
	$(PYTHON) tests/versions.py $(VERSIONS)

MINUTES ?= 60
long:  ## MINUTES of training (both stages), embedding and a gallery: does memory grow?
	$(PYTHON) benchmarks/long_runs.py --minutes $(MINUTES)

lint:  ## style, types and the import contract
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as run; run()"

format:  ## rewrite what ruff can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs:  ## links, commands, code and paths of the pages
	$(PYTHON) docs/check.py

audit:  ## known vulnerabilities of what is installed; needs the extra `audit` and the network
	$(PYTHON) -m pip_audit --local --skip-editable

sbom:  ## what is installed as CycloneDX, in sbom.json; needs the extra `audit`
	$(PYTHON) -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible -o sbom.json

bench:  ## the benchmarks that need no data; their options are in their first lines
	for script in benchmarks/vmf_accuracy.py benchmarks/vmf_speed.py benchmarks/tenfold.py \
	    benchmarks/score_matrix.py benchmarks/backbone_engines.py benchmarks/confidence_fit.py \
	    benchmarks/kept_memory.py benchmarks/extract_overhead.py benchmarks/confidence_step.py benchmarks/scaling.py \
	    benchmarks/record_memory.py benchmarks/demo.py benchmarks/nearest_point.py; do \
	    echo "== $$script"; $(PYTHON) $$script || exit 1; done

mutants:  ## small changes of the mathematics, each of which a test must notice (hours); pip install cosmic-ray coverage
	$(PYTHON) -m tests.mutants

coverage:  ## lines that the fast tests do not run, also those of other processes (half an hour); pip install coverage
	$(PYTHON) -m coverage erase
	$(PYTHON) -m coverage run -m pytest -n0
	$(PYTHON) -m coverage combine -q
	$(PYTHON) -m coverage report
