# Everything from a fresh machine: Python 3.11 or newer with pip and venv, and make. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process with all cores; by itself accelerate gives a process one thread.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--gpu_ids 0 --num_cpu_threads_per_process $(CORES)

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# Threads that spin while they wait take the cores from other processes: on CPUs every laptop has some.
export OMP_WAIT_POLICY ?= PASSIVE
test test-fast test-lowest coverage: export OMP_NUM_THREADS := 1

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The environment is made anew when setup.cfg changes; the stamp is written last, so a broken install is not taken for one.
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]'
	touch $@

install: $(VENV)/installed  ## Make the environment in .venv

demo: install  ## Pre-train, fine-tune on English and evaluate in ten languages on the embedded data (a quarter of an hour)
	$(LAUNCH) train_pretrain.py configs/shapes_pretrain.yaml
	$(LAUNCH) train_retrieval.py configs/shapes_finetune.yaml
	$(BIN)/python eval_mrv.py --model outputs/demo/finetune --task shapes --output_dir outputs/demo
	@printf '%s\n' '' 'The model is in outputs/demo/finetune, its results in outputs/demo: open report.html. Next, for instance:' \
		'  make search-demo' \
		'  $(BIN)/python -m data_scripts.check PHOTOS --splits train     a folder of pictures with a metadata.jsonl' \
		'  $(BIN)/python -m ccrk.search index PHOTOS photos.index --model outputs/demo/finetune'

study: install  ## Compare 1-to-K with other styles of training, three seeds of each: outputs/study/consistency_study.md (an hour)
	$(BIN)/python research/consistency/study.py --output_dir outputs/study
	$(BIN)/python research/consistency/report.py outputs/study outputs/study

search-demo: install  ## Index the demo's 500 unseen scenes and open the page; trains the demo first where it is not there
	test -f outputs/demo/finetune/config.json || $(MAKE) demo
	$(BIN)/python -m ccrk.search index shapes outputs/demo/search --model outputs/demo/finetune
	$(BIN)/python -m ccrk.search serve outputs/demo/search --open

# With the python that has PyTorch and transformers; an environment of its own would need a network.
gpu:  ## Check and time everything on a GPU, in nine minutes: outputs/gpu.json
	$(PYTHON) -m benchmarks.gpu

lint: install  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --quiet

test: lint  ## Lint and run all tests
	$(PYTEST)

test-fast: install  ## Run the tests that take no seconds
	$(PYTEST) -m 'not slow'

test-lowest:  ## Run the fast tests with the lowest versions that setup.cfg promises, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	sed -nE 's/^ +([A-Za-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' setup.cfg | sort -u > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --editable '.[demo,test]' --constraint .venv-lowest/lowest.txt
	$(PYTEST:$(BIN)%=.venv-lowest/bin%) -m 'not slow'

coverage: install  ## Run all tests, and list the lines that none of them reaches
	$(PYTEST) --cov --cov-report term-missing:skip-covered

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment, outputs and caches
	rm -rf $(VENV) .venv-lowest outputs *.egg-info .pytest_cache .ruff_cache

.PHONY: help install demo study search-demo gpu lint test test-fast test-lowest coverage format clean
.DEFAULT_GOAL := help
