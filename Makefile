# ftpproxy: everything a newcomer needs is `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help demo test matrix system-test bench lint fuzz clean system
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

system: ## what the lab and the tests need from Debian
	@sh tests/system-packages.sh

$(STAMP): pyproject.toml | system
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

PLANES ?= relay
demo: $(STAMP) ## show it: NAT on either side, with and without the proxy; PLANES (relay, or nft) carry the data
	@$(BIN)/ftpproxy lab --planes $(PLANES) demo

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

JOBS ?= 3
test: $(STAMP) lint ## everything, namespaces and real peers included; JOBS (3) files at a time
	@sh tests/system-packages.sh peers
	@$(BIN)/pytest -q -n $(JOBS) --dist loadfile
	@sh tests/system-packages.sh system
	@$(BIN)/pytest -q -rs -m system -p no:cacheprovider tests/system

matrix: $(STAMP) ## every real server with every real client in every mode, as a table; ROWS ("nft and curl") chooses
	@sh tests/system-packages.sh peers
	@$(BIN)/python -m pytest -q -m matrix -k "$(ROWS)" -n $(JOBS) -p no:cacheprovider \
		-p tests.netns.results --results .cache/matrix tests/netns/test_matrix.py

system-test: $(STAMP) ## the service in a booted Debian with systemd (root, debootstrap, systemd-nspawn)
	@sh tests/system-packages.sh system
	@MUST_BOOT=1 $(BIN)/pytest -q -m system -p no:cacheprovider tests/system

bench: $(STAMP) ## throughput and sessions a second, as JSON
	@$(BIN)/python -m bench

SECONDS ?= 60
fuzz: $(STAMP) ## hostile octets for SECONDS (60), shared by all targets
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

clean: ## remove what was built
	@rm -rf $(VENV) .cache bench/build .mypy_cache .pytest_cache .ruff_cache .hypothesis
