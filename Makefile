# What people do with a checkout. `make` alone lists it.
#
# Needs make and Python 3.10 or newer, and installs into $(VENV) only. $(VENV) is made again when it is of another Python
# than $(PYTHON), and when setup.cfg, pyproject.toml or constraints.txt is newer than it.

PYTHON ?= python3
VENV ?= .venv
TOUR ?= tour
PYTEST_ARGS ?= -n 2

export PIP_DISABLE_PIP_VERSION_CHECK = 1
bin = $(VENV)/bin
install = $(bin)/python -m pip install --quiet -c constraints.txt
ask_version = -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null

.PHONY: help demo test lint types docs tables dist clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | while IFS='|' read -r name what; do printf '%-15s%s\n' "$$name" "$$what"; done
	@echo "With another Python: PYTHON=python3.12 make test. Some of the tests: make test PYTEST_ARGS=tests/test_losses.py."

demo: $(VENV)/installed ## convert an official checkpoint with proof, classify pictures, show where the model looks (tour/)
	@test ! -e '$(TOUR)' || test -f '$(TOUR)/siglip-shapes/parity.json' || \
		{ echo "Expected $(TOUR)/ to be missing or of an earlier demo. Choose another folder: make demo TOUR=..." >&2; exit 1; }
	@rm -rf '$(TOUR)'
	$(bin)/twinlens demo --folder '$(TOUR)'

test: $(VENV)/installed-dev ## run the tests
	$(bin)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-dev ## check style and import directions
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/python -m pytest --quiet --noconftest tests/test_architecture.py -k TestImports

types: $(VENV)/installed-dev ## check the types of the package
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && ln -s '$(CURDIR)' "$$folder/twinlens" && cd "$$folder" && \
		MYPYPATH=. '$(abspath $(bin))/mypy' --config-file twinlens/setup.cfg \
		--exclude '^twinlens/(benchmarks|build|docs|notebooks|tests|tools)/' -p twinlens

docs: $(VENV)/installed-docs ## build the documentation (site/)
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict

tables: $(VENV)/installed ## write the tables of docs/benchmarks.md from benchmarks/results/
	$(bin)/python benchmarks/tables.py

dist: $(VENV)/installed-dev ## build and check the source distribution and the wheel (dist/)
	rm -rf build dist
	$(bin)/python -m build
	$(bin)/twine check --strict dist/*
	$(bin)/python .ci/check_distributions.py dist

clean: ## remove what these commands made, except tour/
	rm -rf build dist site twinlens.egg-info
	test ! -f '$(VENV)/made-by-make' || rm -rf '$(VENV)'

# The environment. `made-by-make` marks a folder that may be removed, `ready` one with a working Python.

ifneq ($(shell $(bin)/python $(ask_version)),$(shell $(PYTHON) $(ask_version)))
.PHONY: $(VENV)/ready
endif

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "twinlens needs Python 3.10 or newer, and $(PYTHON) is not. Name one: PYTHON=python3.12 make ..." >&2; exit 1; }
	@test ! -e '$(VENV)' || test -f '$(VENV)/made-by-make' || \
		{ echo "$(VENV) is not of this Makefile, which would replace it. Choose another folder: make VENV=.venv-make ..." >&2; exit 1; }
	@rm -rf '$(VENV)' && mkdir -p '$(VENV)' && touch '$(VENV)/made-by-make'
	@$(PYTHON) -m venv '$(VENV)' || \
		{ echo "$(PYTHON) cannot make environments: its venv or ensurepip is missing. On Debian and Ubuntu: apt install python3-venv." >&2; exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/ready
	@echo "Installing into $(VENV), which takes minutes the first time ..."
	$(install) -e .
	@touch $@

$(VENV)/installed-%: $(VENV)/ready
	@echo "Installing into $(VENV), which takes minutes the first time ..."
	$(install) -e '.[$*]'
	@touch $@
