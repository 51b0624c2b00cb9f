# Every target does its own set-up; `make install` makes the virtual environment once, and again when a pin changes.
PYTHON ?= python3
VENV := .venv
NEWEST := .venv-newest
AUDIT := .venv-audit
RECBOLE := recbole==1.2.1
TORCH := $(shell sed -n 's/^\(torch==[^;]*\).*/\1/p' constraints.txt)
# Two workers; a file's tests stay together, as they share models and stages that take longer than the tests. Files are
# handed out in the order of tests/conftest.py, the longest first.
PYTEST := pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder
DEMO := --model=Pop,BIGRec,SOFT --dataset=ml-100k --config_files=properties/demo.yaml

# Tests and tables are made of many small tensors: threads cost more than they give, and change the last digits.
test test-rounding test-slow test-newest test-hostile: export OMP_NUM_THREADS ?= 1

# With more threads than cores, a thread that waits lets another one work: two workers of two threads on two cores would
# take three times as long.
test test-rounding test-slow test-newest test-hostile: export OMP_WAIT_POLICY ?= PASSIVE

# Bytecode is kept, whatever the environment says: the processes that tests start would compile every module again.
test test-rounding test-slow test-newest test-hostile: export PYTHONDONTWRITEBYTECODE =

.PHONY: install demo test test-rounding test-slow test-newest test-hostile results benchmark lint docs vulnerabilities clean

install: $(VENV)/.installed

# torch goes first, alone, so that nothing later can choose another one. The last line matters on Python 3.12 and later,
# where setup.py leaves RecBole out because of its ray.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[cpu,test]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(RECBOLE)
	touch $@

# RecBole without ray, as where ray has no build: on older Pythons setup.py brought it in, so it is taken out again.
$(NEWEST)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) --editable '.[cpu,test]'
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(RECBOLE)
	$(NEWEST)/bin/python -m pip uninstall --quiet --yes ray
	touch $@

demo: install
	$(VENV)/bin/python run_recbole_llm.py $(DEMO)
	@newest=$$(ls -td saved/SOFT-ml-100k-*/ | head -1); cat "$${newest}answers.md"; echo "plot: $${newest}curriculum.png"

test: install
	$(VENV)/bin/python -m $(PYTEST) -m "not slow and not hostile"

# The same with the last digits of another processor: what asks two different computations for equal bits fails.
test-rounding: install
	$(VENV)/bin/python -m $(PYTEST) -m "not slow and not hostile" --rounding=1

test-slow: install
	$(VENV)/bin/python -m $(PYTEST) -m slow

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m $(PYTEST) -m "not slow and not hostile"

# Thousands of generated bad inputs, other ones every day; HOSTILE_SEED repeats those of another day.
HOSTILE_SEED ?= $(shell date +%Y%m%d)
test-hostile: install
	$(VENV)/bin/python -m $(PYTEST) -m hostile --hypothesis-seed=$(HOSTILE_SEED)

results: install
	$(VENV)/bin/python -m benchmarks.results
	$(VENV)/bin/python -m benchmarks.claims

benchmark: install
	$(VENV)/bin/python -m benchmarks.speed --json benchmarks/results/speed.json
	$(VENV)/bin/python -m benchmarks.speed_soft --json benchmarks/results/speed_soft.json
	$(VENV)/bin/python -m benchmarks.speed_trunk --threads 1 --repeats 2 --json benchmarks/results/speed_trunk.json
	$(VENV)/bin/python -m benchmarks.speed_titles --json benchmarks/results/speed_titles.json
	$(VENV)/bin/python -m benchmarks.speed_ilora --json benchmarks/results/speed_ilora.json
	$(VENV)/bin/python -m benchmarks.speed_dealrec --json benchmarks/results/speed_dealrec.json
	$(VENV)/bin/python -m benchmarks.speed_goracs --repeats 0 --json benchmarks/results/speed_goracs.json
	$(VENV)/bin/python -m benchmarks.speed_objective --threads 1 --repeats 3 --json benchmarks/results/speed_objective.json
	$(VENV)/bin/python -m benchmarks.speed_semid --threads 1 --repeats 5 --json benchmarks/results/speed_semid.json
	$(VENV)/bin/python -m benchmarks.scale_coresets
	$(VENV)/bin/python -m benchmarks.scale_faiss
	$(VENV)/bin/python -m benchmarks.scale_faiss --items 50000 --way torch --way Flat --way "HNSW32;efSearch=64"
	$(VENV)/bin/python -m benchmarks.scale_goracs --rows 1000000 --valid 10000
	$(VENV)/bin/python -m benchmarks.scale_goracs --rows 20000 --valid 5000 --pool 8192 --compare
	$(VENV)/bin/python -m benchmarks.validity_goracs
	$(VENV)/bin/python -m benchmarks.validity_influence --rows 400

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Builds the site into site/; a link that leads nowhere, or a page that cannot be read, is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[docs]'
	touch $@

# Known vulnerabilities of the tested versions, in an environment of its own so that no tested version moves.
vulnerabilities: $(AUDIT)/.installed
	$(AUDIT)/bin/pip-audit --disable-pip --no-deps --progress-spinner=off --requirement constraints.txt

$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(AUDIT) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
