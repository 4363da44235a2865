# Everything here sets itself up: a virtual environment in .venv with the versions of requirements.lock.
PYTHON ?= python3.11
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup slurm kubernetes demo report test lint format lock clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

slurm: $(READY) ## Add SLURM's plugin, for runs on a cluster
	$(BIN)/pip install --quiet --no-deps --requirement requirements-slurm.lock

kubernetes: $(READY) ## Add the plugins for Kubernetes and object storage
	$(BIN)/pip install --quiet --no-deps --requirement requirements-kubernetes.lock

demo: $(READY) ## Run the default experiment (config.yaml) to its tables and figures
	$(BIN)/snakemake --cores $(CORES) --quiet rules host
	@cat results/default/tables/accuracy_vs_flops.md

report: $(READY) ## Gather tables and figures in results/default/report.html, after the demo
	$(BIN)/snakemake --report results/default/report.html

test: $(READY) lint ## Check style, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

lint: $(READY) ## Check style and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(READY) ## Put source files into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lock: ## Renew the lock files from pyproject.toml
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 setuptools wheel --editable '.[test,quantise]'
	.venv-lock/bin/pip freeze --all --exclude-editable --exclude pip \
	  | sed 's/+cpu//' | grep -v -i -E '^(nvidia|triton|cuda)' > requirements.lock
	.venv-lock/bin/pip install --quiet --constraint requirements.lock --editable '.[slurm]'
	.venv-lock/bin/pip freeze | grep '^snakemake-executor-plugin-slurm' > requirements-slurm.lock
	# boto3 is older than the newest python-dateutil, with which all else is content.
	grep -v '^python-dateutil' requirements.lock > .venv-lock/constraints
	.venv-lock/bin/pip install --quiet --constraint .venv-lock/constraints --editable '.[kubernetes]'
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu//' \
	  | grep -v -x -F -f requirements.lock -f requirements-slurm.lock \
	  | grep -v -i -E '^(nvidia|triton|cuda)' > requirements-kubernetes.lock
	rm -rf .venv-lock

clean: ## Remove results and Snakemake's own records, after asking
	@printf 'Remove results/ and .snakemake/? [y/N] ' && read answer && [ "$$answer" = y ]
	rm -rf .snakemake && find results -mindepth 1 -not -name README.md -delete
