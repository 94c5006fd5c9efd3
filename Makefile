# engine.pyz: `make` builds it, `make test` tests everything, `make demo` runs a container.
# T=tests/test_x.py::test_y narrows quick and root to some tests; S=cgroups names a section for show.

PYTHON ?= /usr/bin/python3
PY      = tests/.cache/venv/bin/python
TEST    = $(PY) -B -m pytest -c tests/pytest.ini --rootdir=.
RUFF    = $(PY) -m ruff check --config tests/ruff.toml --cache-dir tests/.cache/ruff
MYPY    = $(PY) -m mypy --config-file tests/mypy.ini --cache-dir tests/.cache/mypy
SHELL   = /bin/sh
SOURCES = engine.py build_zipapp.py LICENSE
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: all build test test-vm quick-vm quick root lint types demo bench repro importtime toc show clean clean-vm packages

all: build

build: engine.pyz

engine.pyz: $(SOURCES)
	$(PYTHON) build_zipapp.py

# A test that fails is run once more by itself, and both are told: the machine may have been too slow for it. What
# is left behind is not forgiven.
AGAIN   = --reruns 1 --rerun-except 'left behind'

test: packages lint types
	@status=0; $(TEST) $(AGAIN) -m "not root" || status=$$?; \
	$(MAKE) --no-print-directory root T="$(AGAIN)" || status=$$?; \
	$(MAKE) --no-print-directory quick-vm || status=$$?; exit $$status

quick: packages
	$(TEST) -m "not root and not slow" $(T)

# A mount and a network namespace of its own spare the host whatever a test leaves behind. It has a loopback and
# nothing else, so that no test depends on a network.
root: packages
	unshare -mn --propagation private $(PY) tests/in_namespace.py $(TEST) -m root $(T)

# The main job in small machines (qemu): other kernels, Pythons, libcs, cgroups; in three of them also the
# attacks of tests/test_*_escapes.py. V=debian11 narrows it. The quick one is part of `make test`.
test-vm: build
	$(PYTHON) tests/vm/run.py $(abspath engine.pyz) $(V)

quick-vm: build
	@$(PYTHON) tests/vm/run.py --quick $(abspath engine.pyz)

lint: packages
	$(RUFF) .

types: packages
	$(MYPY) engine.py

demo: build
	sh tests/demo.sh $(PYTHON)

bench: build
	sh tests/packages.sh $(PYTHON) bench
	$(PYTHON) tests/bench/side_by_side.py $(B)

repro:
	$(TEST) -q tests/test_build.py::test_two_builds_in_two_directories_are_equal

importtime: build
	$(PYTHON) -X importtime engine.pyz --version 2>&1 | sort -t'|' -k2 -n | tail -25

toc:
	@$(PYTHON) tests/test_structure.py

show:
	@$(PYTHON) tests/test_structure.py $(S)

# What the tests need: Debian packages where apt is, and a virtual environment with pinned versions. Both are
# quick when nothing is missing.
packages: tests/.cache/venv/ready

tests/.cache/venv/ready: tests/requirements.txt tests/packages.sh
	sh tests/packages.sh $(PYTHON)

# The machines of test-vm (3.6 GB, an hour's work) stay; `make clean-vm` removes them.
clean:
	rm -rf engine.pyz .build __pycache__ tests/__pycache__ tests/bench/__pycache__
	if [ -d tests/.cache ]; then find tests/.cache -mindepth 1 -maxdepth 1 ! -name vm -exec rm -rf {} +; fi

clean-vm:
	rm -rf tests/.cache/vm
