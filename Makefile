# One file of settings, or none: make run CONFIG=my.toml
# Logs of your own, or none: make run DATA=path/to/logs [DAYS=2026-03-09,2026-03-10]
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SPARK := $(VENV)/spark

export OMP_NUM_THREADS ?= 1

.PHONY: run up down features-up test test-ceph test-slow check format lock pipeline pictures clean

run: $(READY)
	@$(BIN)/storyrec run $(if $(DATA),--data "$(DATA)") $(if $(DAYS),--days "$(DAYS)") $(if $(CONFIG),--config "$(CONFIG)")

up: $(READY)
	@$(BIN)/storyrec up $(if $(CONFIG),--config "$(CONFIG)")

down: $(READY)
	@$(BIN)/storyrec down

features-up: $(READY)
	@$(BIN)/storyrec features serve $(if $(CONFIG),--config "$(CONFIG)")

test: $(READY)
	$(BIN)/pytest

# against a real Ceph gateway, which the programs of ceph-mon, ceph-osd and radosgw start in memory
test-ceph: $(READY)
	STORYREC_TEST_S3=ceph $(BIN)/pytest -n 0 tests/test_ceph.py tests/test_storage.py tests/test_registry.py \
		tests/test_registry_care.py tests/test_s3_faults.py tests/test_deploy.py

test-slow: $(READY) $(SPARK)
	$(BIN)/pytest -m slow
	PYTHONPATH=$(SPARK) $(BIN)/pytest -m slow tests/data/test_spark.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# the documentation's, from what `make run` left; needs chromium
pictures: $(READY)
	@$(BIN)/python docs/pictures.py $(CONFIG)

pipeline: $(READY)
	@mkdir -p build
	@$(BIN)/storyrec pipeline build/train_adapt.yaml $(if $(CONFIG),--config "$(CONFIG)")

# torch is taken by pip, so that pip's own settings decide between a CPU and a GPU build
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(shell sed -n 's/^uv==//p' requirements.lock)"
	@grep -vE '^(torch|pyspark|py4j)==' requirements.lock > $(VENV)/requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $(VENV)/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(shell grep '^torch==' requirements.lock)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# half a gigabyte that one machine does not need, apart: Great Expectations behaves differently where it finds it
$(SPARK): $(READY)
	@echo "Setting up $(SPARK) ..."
	@grep -E '^(pyspark|py4j)==' requirements.lock > $(VENV)/spark.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $@ -r $(VENV)/spark.txt
	@touch $@

lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)") \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet --output-file requirements.lock
	sed -i 's/^\(torch==[0-9.]*\)+cpu$$/\1/' requirements.lock

clean:
	rm -rf $(VENV) build var
