# Everything a fresh machine needs: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

OPENPI := .venv-openpi/.ready
FRANKA := .venv-franka/.ready
FRANKASIM := .venv-frankasim/.ready

.PHONY: demo test test-slow lint clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[server,sim,train,test]'
	$(BIN)/wam sims install libero --no-assets >/dev/null
	$(BIN)/wam sims install pusht >/dev/null
	# Headless OpenGL for the simulators; a browser for the report's test, which skips without one.
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  dpkg -s libegl1 libgl1-mesa-dri >/dev/null 2>&1 && command -v chromium >/dev/null || { \
	  apt-get update -qq && \
	  apt-get install -qq -y --no-install-recommends libegl1 libgl1-mesa-dri chromium; }; fi || true
	touch $@

# The real openpi client and server, apart because they pin numpy < 2; they run with numpy 2 all the same.
$(OPENPI):
	$(PYTHON) -m venv .venv-openpi
	.venv-openpi/bin/pip install -q --no-deps openpi-client==0.1.2 openpi-server==0.1.0
	.venv-openpi/bin/pip install -q 'numpy>=2,<3' 'websockets>=15' msgpack dm-tree pillow typing_extensions
	touch $@

# The real franky and an arm for it to talk to, apart: what a robot's control PC installs, without torch.
$(FRANKA): pyproject.toml
	test -x .venv-franka/bin/python || $(PYTHON) -m venv .venv-franka
	.venv-franka/bin/pip install -q -e '.[robot]' franky-sim==1.0.4
	touch $@

# An arm that enforces its limits; it pins numpy 1.26.
$(FRANKASIM):
	$(PYTHON) -m venv .venv-frankasim
	.venv-frankasim/bin/pip install -q franka-sim==1.1.7
	touch $@

demo: $(STAMP)
	./demo.sh

test: lint $(OPENPI) $(FRANKA)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu"

test-slow: $(STAMP) $(OPENPI) $(FRANKA) $(FRANKASIM)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

.typing: $(STAMP)
	mkdir -p .typing/wamserve
	for room in action_codec embodiments clients policy_server sim_eval training; do \
	  ln -sfn ../../$$room .typing/wamserve/$$room; done

lint: $(STAMP) .typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.typing $(BIN)/mypy -p wamserve

clean:
	rm -rf $(VENV) .venv-openpi .venv-franka .venv-frankasim .typing build *.egg-info
