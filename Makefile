.PHONY: help install demo test check check-zygote check-gpu check-seed chaos soak mutations bench

help:        ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install:     ## .venv with the fal and keepwarm commands
	python3 bootstrap.py install

demo:        ## a platform with the hello app, until Ctrl-C
	python3 bootstrap.py

test:        ## lint, types and every test that needs Python alone
	python3 bootstrap.py test

check:       ## exactly what CI runs (installs Debian packages: needs root there)
	bash .ci/run

check-zygote: install  ## the tests of worker and runner once more, every process born to a zygote
	KEEPWARM_TESTS_START=zygote .venv/bin/python -m pytest tests/worker tests/runner -q -n 2

check-seed: install  ## the SDXL example with its own pins on the CPU: about 5 GB, not part of CI
	.venv/bin/python examples/check_seed.py

check-gpu: install  ## real failures of this machine's GPU; PYTHON=an interpreter with torch for it
	KEEPWARM_GPU_PYTHON=$(PYTHON) .venv/bin/python -m pytest tests/gpu -m gpu -q

chaos: install  ## kill -9 and SIGSTOP on a real platform, once
	.venv/bin/python -m tests.chaos

soak: install  ## the same for half an hour (MINUTES=30), with memory, files and keys watched
	.venv/bin/python -m tests.chaos.soak --minutes $(or $(MINUTES),30)

mutations: install  ## take each guard of the Lua scripts out: a test has to fail
	.venv/bin/python -m tests.mutations

bench: install  ## the benchmark tables
	.venv/bin/python benchmarks/run.py
