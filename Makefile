# make sweep: install what is needed into .venv and run the default sweep.   make test: the same, and run the tests.
# Needs Python 3.11 or newer (PYTHON=python3.12 picks one) and nothing else.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: sweep test test-slow check ui gpu bench-accuracy bench-overhead bench-instrumentation bench-formats bench-threads bench-repeatability bench-forecast bench-forecast-busy bench-advise bench-tracking bench-dry-run bench-analysis bench-growth bench-launch fuzz notebooks screenshots clean

sweep: $(VENV)/requirements.done
	$(RUN) launch.py sweep.yaml

test: $(VENV)/requirements-dev.done
	$(RUN) -m pytest -m "not slow and not quiet" -n 2 --dist loadfile
	$(RUN) -m pytest -m "quiet and not slow"

test-slow: $(VENV)/requirements-dev.done
	$(RUN) -m pytest -m "slow and not beside"
	$(RUN) -m pytest -m beside tests/test_hosts.py tests/test_interrupt.py & first=$$!; \
	$(RUN) -m pytest -m beside -n 2 --dist loadfile --ignore=tests/test_hosts.py --ignore=tests/test_interrupt.py; others=$$?; \
	wait $$first && exit $$others

check: $(VENV)/requirements-dev.done
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

ui: $(VENV)/requirements.done
	@$(RUN) -m sweeps.tracking.artifacts sqlite:///mlflow.db
	@echo "MLflow shows the sweeps of this folder at http://127.0.0.1:5000 (Ctrl-C ends it)"
	@MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(RUN) -m mlflow server --host 127.0.0.1 --port 5000 \
		--workers 1 --backend-store-uri sqlite:///mlflow.db --default-artifact-root mlartifacts

# Both show sweeps of this folder's mlflow.db: make notebooks NAMES="first-look second"; make screenshots NAMES=first-look
NAMES ?= first-look

notebooks: $(VENV)/requirements-dev.done
	SWEEP=$(firstword $(NAMES)) SWEEPS="$(NAMES)" $(RUN) -m tests.notebooks

screenshots: $(VENV)/requirements-dev.done
	$(RUN) -m tests.screenshots $(firstword $(NAMES))

bench-accuracy: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.accuracy

bench-overhead: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.overhead

bench-instrumentation: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.instrumentation

bench-formats: $(VENV)/requirements-dev.done
	$(RUN) -m tests.benchmarks.formats

bench-threads: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.threads

bench-repeatability: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.repeatability

bench-forecast: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.forecast

bench-forecast-busy: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.forecast --busy 1

bench-advise: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.advise

bench-tracking: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.tracking

bench-dry-run: $(VENV)/requirements-dev.done
	$(RUN) -m tests.benchmarks.dry_run

bench-analysis: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.frames

bench-growth: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.growth

bench-launch: $(VENV)/requirements.done
	$(RUN) -m tests.benchmarks.launch

fuzz: $(VENV)/requirements-dev.done
	$(RUN) -m tests.surroundings --cases 300 --seed 1

gpu: $(VENV)/requirements-dev.done
	$(RUN) -m tests.benchmarks.gpu

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "The venv module is missing or broken; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/%.done: %.txt requirements.txt | $(VENV)/bin/python
	@echo "Installing $< into $(VENV): 6.5 GB and a few minutes the first time"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
