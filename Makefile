# Two commands: `make demo` and `make test`. Each makes .venv on the first call; from then on it starts at once.
PYTHON ?= python3.11
VENV := .venv
INSTALLED := $(VENV)/.installed
EXTRAS ?= cpu,offline,eval,plots,images,train,stores,dev

.PHONY: demo test lint

demo: $(INSTALLED)
	$(VENV)/bin/embedkit demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto $(PYTEST_OPTIONS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# a torch that is in .venv already (a CUDA build, say) is kept where the constraints allow it
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $(INSTALLED)
