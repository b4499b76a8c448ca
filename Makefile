# One line of intent each. `make lab` and `make test` are the two that everybody needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TORCH  := 2.13.0
# Jupyter refuses to run as root, which is who one is in most containers
ROOT   := $(if $(filter 0,$(shell id -u 2>/dev/null)),--allow-root)

.PHONY: setup lab test course site notebooks teachers results readme bench lock clean
.DEFAULT_GOAL := lab

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("kdlab needs Python 3.11 or newer; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	$(BIN)/python -m ipykernel install --prefix $(VENV) --name kdlab --display-name "kdlab" >/dev/null
	@touch $@

setup: $(READY)          ## the environment alone

lab: $(READY)            ## open the course
	$(BIN)/jupyter lab $(ROOT) notebooks/00_start_here.ipynb

test: $(READY)           ## everything that is proved
	$(BIN)/ruff check kdlab tests notebooks tools benchmarks experiments
	$(BIN)/ruff format --check kdlab tests tools benchmarks experiments
	$(BIN)/mypy kdlab
	$(BIN)/python tools/prove.py

course: $(READY)         ## run every lesson, write HTML pages to build/course
	$(BIN)/kdlab course build/course

site: $(READY)           ## the executed lessons, the guides and the API as pages: build/site
	$(BIN)/python tools/build_site.py

notebooks: $(READY)      ## execute the lessons in place; a second run changes no byte
	$(BIN)/python tools/rerun.py notebooks/*.ipynb

teachers: $(READY)       ## train the shipped teachers anew
	$(BIN)/kdlab teachers --rebuild

results: $(READY)        ## make the stored results that lessons show anew (three hours on two cores)
	$(BIN)/python tools/reference_results.py
	$(BIN)/python tools/gate_results.py
	$(BIN)/python tools/depth_results.py
	$(BIN)/python tools/compression_results.py
	$(BIN)/python tools/compressed_models.py

readme: $(READY)         ## write the README's tables from the stored results
	$(BIN)/python tools/readme.py

bench: $(READY)          ## speed against the plain loop: a table and a plot
	$(BIN)/python benchmarks/training_loop.py

lock:                    ## resolve pyproject.toml anew (needs uv)
	printf 'torch==$(TORCH)\n' | uv pip compile --quiet --universal --python-version 3.11 --extra dev \
	  --no-annotate --custom-compile-command "make lock" -c - pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build
