# A fresh machine needs Python 3.11 or newer and make; all else goes into .venv.

PYTHON ?= python3
CONFIG ?= params/demo.yaml
RUN ?=
PY := .venv/bin/python
PIP := -m pip install -qq --disable-pip-version-check --no-compile
# pip would do it on one core, and the packages' tests, too.
COMPILE := -m compileall -q -j 0 -x '/tests?/|/testing/'
# nbmake, which is for other folders' notebooks, costs each of the three processes two seconds of import.
SPREAD := -n 3 --dist loadfile --no-loadscope-reorder -p no:nbmake
# Threads that wait give the core to others, which matters where cores are few.
export OMP_WAIT_POLICY ?= PASSIVE
UV := 0.13.9
LOCK := pip compile --quiet --universal --python-version 3.11 --upgrade --no-emit-index-url --annotation-style line
DEMO := data/sample models/siglip-tiny outputs/demo outputs/demo-kaggle

.DEFAULT_GOAL := help
.PHONY: help demo test check lint lock lab run sample bench clean kernel push kaggle-status kaggle-output kaggle-weights kaggle-backbone test-kaggle
.DELETE_ON_ERROR:

help: ## what can be made
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: sample ## the whole road on the embedded sample: eda, five folds, ensemble, submission.csv
	@$(PY) pipeline.py --config params/demo.yaml --jobs 2

test: lint ## lint, then all tests
	@$(PY) -m pytest $(SPREAD)

check: lint ## lint, then the tests that are not marked slow: within a minute
	@$(PY) -m pytest $(SPREAD) -m "not slow"

lint: .venv/installed ## ruff, and notebooks without outputs
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@set -- notebooks/*.ipynb; [ ! -e "$$1" ] || $(PY) -m nbstripout --keep-id --verify "$$@" || \
	{ echo "notebooks are committed without outputs: $(PY) -m nbstripout --keep-id notebooks/*.ipynb"; exit 1; }

# In an environment of its own: the project's can't be installed while its requirements and the lock contradict each other.
lock: ## .ci/requirements.lock and kaggle_kernel/requirements.lock anew, for Python 3.11 to 3.13 on all systems
	$(check-python)
	@$(PYTHON) -m venv --clear build/lock && build/lock/bin/python $(PIP) uv==$(UV)
	@build/lock/bin/uv $(LOCK) --custom-compile-command "make lock" --python build/lock/bin/python \
	pyproject.toml --extra dev -o .ci/requirements.lock
	@build/lock/bin/uv $(LOCK) --custom-compile-command "make lock" --python build/lock/bin/python \
	kaggle_kernel/requirements.txt -o kaggle_kernel/requirements.lock

lab: sample ## JupyterLab in the project's folder, with the sample there to start on
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m jupyterlab $(ARGS)

run: .venv/installed ## an experiment: make run CONFIG=params/head.yaml RUN=hm ARGS="--folds 0 2"
	@$(PY) pipeline.py --config $(CONFIG) $(if $(RUN),--run $(RUN)) $(ARGS)

sample: .venv/installed ## the sample competition and its tiny model: data/sample, models/siglip-tiny
	@$(PY) -m goods.data.sample

bench: .venv/installed ## what costs what, as ratios inside one run: benchmarks/results.md
	@$(PY) -m benchmarks.bench

# USER is a variable of the shell, too: only one given to make counts.
kernel: .venv/installed ## builds the Kaggle kernel: make kernel USER=me [COMPETITION= MODEL= WEIGHTS= RESUME=yes INTERNET=yes ARGS="--set folds=[0]"]
	@$(PY) -m kaggle_kernel.build $(if $(filter command,$(origin USER)),--user $(USER)) $(if $(COMPETITION),--competition \
	$(COMPETITION)) $(if $(MODEL),--model $(MODEL)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(RESUME),--resume $(RESUME)) \
	$(if $(INTERNET),--internet $(INTERNET)) $(ARGS)

push: .venv/installed ## checks the kernel, pushes it to Kaggle, reads the answer (NO_RUN=yes saves it only, SESSION=9 hours)
	@$(PY) -m kaggle_kernel.push push $(if $(NO_RUN),--no-run) $(if $(SESSION),--session $(SESSION))

kaggle-status: .venv/installed ## how the kernel's last version is getting on; while it runs, its log
	@$(PY) -m kaggle_kernel.push status --follow

kaggle-output: .venv/installed ## brings the run of the kernel's last version to outputs/ (RUN= names another one, WEIGHTS=yes)
	@$(PY) -m kaggle_kernel.push output --run "$(RUN)" $(if $(WEIGHTS),--weights)

kaggle-weights: .venv/installed ## the models of that run, of any kind, as a private dataset (RUN= names another one)
	@$(PY) -m kaggle_kernel.push weights --run "$(RUN)"

kaggle-backbone: .venv/installed ## the encoders that the kernel's config names as private datasets, once
	@$(PY) -m kaggle_kernel.push backbone

test-kaggle: .venv-kaggle/installed sample ## the road on the sample, two folds, with the versions of Kaggle's image
	@rm -rf outputs/demo-kaggle && .venv-kaggle/bin/python pipeline.py --config params/demo.yaml --run demo-kaggle --folds 0 1 --jobs 2

clean: ## removes .venv, caches and what the demo made; other data, models and runs stay
	rm -rf .venv .venv-kaggle build *.egg-info $(DEMO) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an install that failed is done again. A .venv without pip (the remains of one that could
# not be made) or with an older Python is made anew.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
define check-python
@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || \
{ echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not that; name one: make ... PYTHON=python3.12" >&2; exit 1; }
endef

.venv/installed: requirements.txt .ci/requirements.lock pyproject.toml
	$(check-python)
	@$(PY) -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; the first time this takes some minutes."
	@$(PY) $(PIP) -e ".[dev]" -c .ci/requirements.lock
	@$(PY) $(COMPILE) .venv/lib > /dev/null || true
	@touch $@

.venv-kaggle/installed: kaggle_kernel/requirements.txt kaggle_kernel/requirements.lock
	$(check-python)
	@$(PYTHON) -m venv --clear .venv-kaggle
	@echo "Installing the versions of Kaggle's image into .venv-kaggle; the first time this takes some minutes."
	@.venv-kaggle/bin/python $(PIP) -r kaggle_kernel/requirements.txt -c kaggle_kernel/requirements.lock
	@.venv-kaggle/bin/python $(COMPILE) .venv-kaggle/lib > /dev/null || true
	@touch $@
