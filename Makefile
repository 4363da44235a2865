# Everything here sets itself up: a virtual environment in .venv with the versions of requirements.lock.
PYTHON ?= python3.11
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin
READY := .venv/ready
INSTALL := $(BIN)/pip install --quiet --no-deps --require-hashes

.DEFAULT_GOAL := help
.PHONY: help setup slurm kubernetes demo report check test lint docs format lock clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment

# torch is its CPU build where pip finds that (PyPI does not have it). PyPI's for Linux needs CUDA's libraries, which
# pip then misses.
$(READY): requirements.lock requirements-cpu.lock requirements-cuda.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'copra needs Python 3.11 or newer. Name yours: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) --requirement requirements-cpu.lock 2> /dev/null || true
	$(INSTALL) --requirement requirements.lock
	$(BIN)/pip check > /dev/null || $(INSTALL) --requirement requirements-cuda.lock
	$(BIN)/pip check
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

slurm: $(READY) ## Add SLURM's plugin, for runs on a cluster
	$(INSTALL) --requirement requirements-slurm.lock

kubernetes: $(READY) ## Add the plugins for Kubernetes and object storage
	$(INSTALL) --requirement requirements-kubernetes.lock

demo: $(READY) ## Run the default experiment (config.yaml) to its tables and figures
	$(BIN)/copra run --cores $(CORES)

report: $(READY) ## Write Snakemake's own report with run times to results/default/snakemake.html, after the demo
	$(BIN)/snakemake --report results/default/snakemake.html

# A file's tests share what they make, so that a file goes to one process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

check: $(READY) lint ## Check style and types, then run the fast tests
	$(PYTEST) -m "not slow and not workflow and not slurm and not kubernetes and not real"

test: $(READY) lint ## Check style and types, then run all tests
	$(PYTEST)

lint: $(READY) docs ## Check style, types, the workflow and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

docs: $(READY) ## Build the documentation site in site/; broken links are errors
	$(BIN)/zensical build --strict --clean

format: $(READY) ## Put source files into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# uv writes the hashes of each package's files for all systems. Versions stay where pyproject.toml lets them;
# `make lock UPGRADE=--upgrade` takes the newest ones.
COMPILE = .venv-lock/bin/uv pip compile pyproject.toml --quiet --universal --generate-hashes \
  --no-annotate --no-header $(UPGRADE)
# The entries of a second file whose versions the first file does not have, or has for other systems only.
NEW = awk 'NR == FNR { known[$$0]; next } /^[^ ]/ { new = !($$0 in known) } new'

lock: ## Write the lock files from pyproject.toml
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	cat requirements.lock requirements-cuda.lock > .venv-lock/all
	$(COMPILE) --extra test --extra docs --extra quantize --extra gguf --output-file .venv-lock/all
	awk '/^[^ ]/ { file = /^(cuda|nvidia|triton)/ ? "requirements-cuda.lock" : "requirements.lock" } { print > file }' \
	  .venv-lock/all
	cp requirements-slurm.lock .venv-lock/slurm
	$(COMPILE) --constraint .venv-lock/all --extra slurm --output-file .venv-lock/slurm
	$(NEW) .venv-lock/all .venv-lock/slurm > requirements-slurm.lock
	# boto3 and the harness want an older python-dateutil than all else.
	grep -o '^[^ ]*==[^ ]*' .venv-lock/all | grep -v '^python-dateutil' > .venv-lock/constraints
	cp requirements-kubernetes.lock .venv-lock/kubernetes
	$(COMPILE) --constraint .venv-lock/constraints --extra kubernetes --output-file .venv-lock/kubernetes
	$(NEW) .venv-lock/all .venv-lock/kubernetes > requirements-kubernetes.lock
	cp requirements-lm-eval.lock .venv-lock/lm-eval
	$(COMPILE) --constraint .venv-lock/constraints --extra lm-eval --output-file .venv-lock/lm-eval
	$(NEW) .venv-lock/all .venv-lock/lm-eval > requirements-lm-eval.lock
	cp requirements-executorch.lock .venv-lock/executorch
	$(COMPILE) --constraint .venv-lock/all --extra executorch --output-file .venv-lock/executorch
	$(NEW) .venv-lock/all .venv-lock/executorch > requirements-executorch.lock
	torch="$$(grep -o '^torch==[^ ]*' requirements.lock)+cpu" && \
	  .venv-lock/bin/pip download --quiet --no-deps --dest .venv-lock/torch --retries 1 \
	  --extra-index-url https://download.pytorch.org/whl/cpu "$$torch" && \
	  { echo "$$torch \\"; .venv-lock/bin/pip hash .venv-lock/torch/*.whl | sed -n 's/^--hash/    &/p'; } \
	  > requirements-cpu.lock
	rm -rf .venv-lock

clean: ## Remove results and Snakemake's own records, after asking
	@printf 'Remove results/ and .snakemake/? [y/N] ' && read answer && [ "$$answer" = y ]
	rm -rf .snakemake && find results -mindepth 1 -not -name README.md -delete
