.PHONY: help install demo test check check-seed bench

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

check-seed: install  ## the SDXL example with its own pins on the CPU: about 5 GB, not part of CI
	.venv/bin/python examples/check_seed.py

bench: install  ## the benchmark tables
	.venv/bin/python benchmarks/run.py
