# The two commands for a fresh machine are `make demo` and `make test`.

PYTHON ?= python3
WORKERS ?= 2
DATA ?= data
export TF_CPP_MIN_LOG_LEVEL ?= 2

# A module's tests stay in one process, where what they share is made once.
PYTEST = -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: venv demo test test-slow test-all test-tf216 lint docs notebooks dist bench reproduce

venv: .venv/installed

# Each environment is made anew when what it is made from changes.
.venv/installed: setup.py constraints/tf221.txt
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints/tf221.txt \
		--editable '.[dev,docs,decode,onnx,litert]'
	touch $@

.venv-tf216/installed: setup.py constraints/tf216.txt
	rm -rf .venv-tf216
	$(PYTHON) -m venv .venv-tf216
	.venv-tf216/bin/python -m pip install --quiet --constraint constraints/tf216.txt \
		--editable '.[dev,tfio]'
	touch $@

demo: venv
	.venv/bin/python training/demo.py

test: venv
	.venv/bin/python $(PYTEST) -m 'not slow and not exhaustive'

# Kills, trainings and other processes.
test-slow: venv
	.venv/bin/python $(PYTEST) -m 'slow and not exhaustive'

# Every property of every layer in every mode, and the rest.
test-all: venv
	.venv/bin/python $(PYTEST)

# All but text formats, files of runs, reports, pictures and flags, in which TensorFlow has no part.
test-tf216: .venv-tf216/installed
	.venv-tf216/bin/python $(PYTEST) -m 'not slow and not exhaustive' \
		$(patsubst %,--ignore=tests/%.py,test_files test_packaging test_signatures \
		fit/test_run_folder data/speech/test_synthesis data/speech/test_textgrid \
		$(addprefix training/test_,command_line compare damaged_files reproduce))

lint: venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Into site/; a link that leads nowhere is an error. For its search: python -m http.server -d site
docs: venv
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet --strict

# The pages of docs/notebooks/: what the notebooks print and draw today.
notebooks: venv
	.venv/bin/python docs/notebooks.py

# Builds from what is installed, so that it needs no network.
dist: venv
	rm -rf dist
	.venv/bin/python -m build --no-isolation

bench: venv
	.venv/bin/python benchmarks/layers.py

# DATA holds ptb/ and spoken-digits/.
reproduce: venv
	.venv/bin/python training/reproduce.py --data_dir=$(DATA)
