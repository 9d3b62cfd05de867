# make demo    pretrain on the shipped molecules, open the result in a new process, embed, draw (sets up .venv itself)
# make solubility   pretraining, fine-tuning, probes and simple models compared on one property
# make page    a page in the browser: paste a SMILES or upload a structure
# make test    the tests (sets up .venv itself)
# make check   what CI runs: style, then the tests
# make slow    the tests marked slow

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: demo solubility page test check slow clean

demo: .venv/.ready
	$(BIN)/python examples/demo.py --output_dir demo-output

solubility: .venv/.ready
	$(BIN)/python examples/solubility.py --output_dir solubility-output

page: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r demo/requirements.txt -c constraints.txt
	$(BIN)/python demo/app.py

test: .venv/.ready-tests
	$(BIN)/python -m pytest -q -m "not slow and not forks"
	$(BIN)/python -m pytest -q -m "forks and not slow"

slow: .venv/.ready-tests
	$(BIN)/python -m pytest -q -m "slow and not forks"
	$(BIN)/python -m pytest -q -m "slow and forks"

check: .venv/.ready-tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(MAKE) test

.venv/.ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(BIN)/python -c "open('.venv/.ready', 'w').close()"

.venv/.ready-tests: .venv/.ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -c "open('.venv/.ready-tests', 'w').close()"

clean:
	$(PYTHON) -c "import shutil; [shutil.rmtree(p, ignore_errors=True) for p in ('.venv', 'demo-output', 'solubility-output')]"
