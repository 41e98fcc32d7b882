# Every target sets itself up: all it takes is Python 3.11 or newer, make and the network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo paper vgg-e arena brute-force certificates monotone search-speed measured-search loader rewrites \
	study test cupy docs tutorials lint bench bench-cpu bench-memory torch-agreement kernels-least scale predict \
	kernels fragmentation pool timeline view-test \
	least-budget gpu-test gpu-bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /:/' | awk -F: '{ printf "make %-15s %s\n", $$1, $$2 }'

demo: $(VENV)/plot.stamp  ## train a small network in less memory than it needs
	$(BIN)/python experiments/demo.py

paper: $(VENV)/plot.stamp  ## recompute the paper's figures, and go beyond them (simulated)
	$(BIN)/python experiments/paper/everything.py

test: $(VENV)/test.stamp  ## run the tests (no GPU needed)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

cupy: $(VENV)/cupy.stamp  ## add CuPy (137 MB) to the tests' environment: more of them run then, still without a GPU

lint: $(VENV)/dev.stamp  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs.stamp  ## build the documentation: docs/_build/html/index.html
	$(BIN)/sphinx-build -b html -d docs/_build/doctrees -W --keep-going -q -j auto docs docs/_build/html
	@echo "the pages are in docs/_build/html/index.html"

tutorials: $(VENV)/docs.stamp  ## run the notebooks, so that make docs shows what they print and draw
	$(BIN)/python docs/extensions/tutorials.py

bench: $(VENV)/plot.stamp  ## time planning, and a plan against a bare loop over its kernels
	$(BIN)/python experiments/bench.py

timeline: $(VENV)/view.stamp  ## write timeline pages (simulated and measured) and record 10,000 steps
	$(BIN)/python experiments/timeline.py

view-test: $(VENV)/browser.stamp  ## test pages in Chromium and traces in Perfetto (apt install chromium chromium-driver)
	$(BIN)/python -m pytest tests/test_timeline_browser.py tests/test_perfetto.py -rs

scale: $(VENV)/plot.stamp  ## time planning from 100 to 10,000 layers
	$(BIN)/python experiments/scale.py

predict: $(VENV)/plot.stamp  ## hold simulated step times against measured ones on this machine
	$(BIN)/python experiments/predict.py

vgg-e: $(VENV)/experiments.stamp  ## search VGG-E in 12, 10 and 8 GiB, with certificates (simulated)
	$(BIN)/python experiments/vgg_e.py

arena: $(VENV)/experiments.stamp  ## hold search against every published policy: 300 cells, about an hour (simulated)
	$(BIN)/python experiments/arena.py --processes 2

brute-force: $(VENV)/experiments.stamp  ## hold search against brute force on 500 small networks (simulated)
	$(BIN)/python experiments/brute_force.py --processes 2

certificates: $(VENV)/experiments.stamp  ## hold lower bounds against every policy's plans (simulated)
	$(BIN)/python experiments/certificates.py

monotone: $(VENV)/experiments.stamp  ## search 20 falling budgets per network (simulated)
	$(BIN)/python experiments/monotone.py

search-speed: $(VENV)/experiments.stamp  ## time search on one core, and its answer after a second
	$(BIN)/python experiments/search_speed.py

measured-search: $(VENV)/experiments.stamp  ## run plans of search and others in turn on this machine (measured)
	$(BIN)/python experiments/measured_search.py

loader: $(VENV)/experiments.stamp $(VENV)/fast.stamp  ## steps fed by the loader against steps on data in memory, some minutes (measured)
	$(BIN)/python experiments/loader.py

rewrites: $(VENV)/experiments.stamp  ## what each rewrite of the tape is worth (simulated)
	$(BIN)/python experiments/rewrites.py

study: $(VENV)/test.stamp  ## kill and resume a study of 240 cells, in processes and through MPI (simulated)
	$(BIN)/python experiments/study.py --mpi

kernels: $(VENV)/plot.stamp  ## time every convolution algorithm
	$(BIN)/python experiments/kernels_conv.py

fragmentation: $(VENV)/plot.stamp  ## arena against peak: every model, every policy, random decisions
	$(BIN)/python experiments/fragmentation.py

pool: $(VENV)/plot.stamp  ## a best-fit pool against the static layout
	$(BIN)/python experiments/pool.py

least-budget: $(VENV)/plot.stamp  ## one VGG-16 step in the least memory that plans, against everything kept
	$(BIN)/python experiments/least_budget.py vgg16 --batch 32

# These four install PyTorch beside vdnn, to compare with; vdnn itself never needs it.
bench-cpu: $(VENV)/torch.stamp  ## time training steps against PyTorch's on this CPU, some 20 minutes (measured)
	$(BIN)/python experiments/cpu_speed.py

bench-memory: $(VENV)/torch.stamp  ## train PyTorch's largest batch in a half to a quarter of its memory (measured)
	$(BIN)/python experiments/cpu_memory.py

torch-agreement: $(VENV)/torch.stamp  ## hold gradients and 50 steps' losses against PyTorch's
	$(BIN)/python experiments/torch_agreement.py

kernels-least: $(VENV)/torch.stamp  ## time the convolutions of the least workspace against PyTorch's (measured)
	$(BIN)/python experiments/kernels_least.py

# These two use the Python that is there, with its CuPy, cuDNN and PyTorch: nothing is installed.
gpu-test:  ## test everything on this machine's GPU; writes experiments/results/gpu_test.json
	@PYTHONPATH=. $(PYTHON) experiments/gpu_about.py
	PYTHONPATH=. $(PYTHON) experiments/gpu_test.py

gpu-bench:  ## measure this machine's GPU, alone and against PyTorch; writes experiments/results/gpu_bench.json
	@PYTHONPATH=. $(PYTHON) experiments/gpu_about.py
	PYTHONPATH=. $(PYTHON) experiments/gpu_bench.py

clean:  ## remove the virtual environment
	rm -rf $(VENV)

# .venv/EXTRA.stamp: vdnn is installed, editable, with that extra of pyproject.toml
$(VENV)/%.stamp: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# the CPU's build of PyTorch, where there is one for this machine; what it needs comes from the usual index alone
TORCH := torch==2.13.0
$(VENV)/torch.stamp: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --extra-index-url https://download.pytorch.org/whl/cpu $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fast,search]' $(TORCH)
	@touch $@

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "there is no '$(PYTHON)'; name a Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vdnn needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	    "name another: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

.PRECIOUS: $(VENV)/%.stamp
