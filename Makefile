# `make` alone prints what there is. Everything runs in its own virtual environment, made on first use.

VENV       ?= .venv
PYTHON     ?= python3
TORCH      ?= torch==2.13.0
CHECKPOINT ?= checkpoints/shapes/decoder
PRECISION  ?= fp16
NAME       ?= $(if $(filter checkpoints/shapes/decoder,$(CHECKPOINT)),shapes,$(notdir $(CHECKPOINT)))-$(PRECISION)
FLAVOUR    ?= auto
BATCH      ?= 1
PROMPT     ?= a large red circle in the middle of a blue background
SEED       ?= 0
MINUTES    ?= 30
BUNDLE     ?= engines/shapes
PORT       ?= 8022

BIN    := $(VENV)/bin
READY  := $(VENV)/installed
SHAPES := engines/shapes/manifest.json
FULL   := engines/kandinsky-2.2-random/manifest.json
SHAPES_SHALLOW := engines/shapes-shallow/manifest.json
SHAPES_INT8 := engines/shapes-int8/manifest.json
FULL_INT8 := engines/kandinsky-2.2-random-int8/manifest.json
RANDOM := --architecture kandinsky-2.2 --random-weights 0 --shallow --calibration benchmarks/calibration.txt \
	--components text_encoder prior_step decoder_step decoder_forecast movq_decoder
DECODERS := $(if $(CONTROLNET),--controlnet "$(CONTROLNET)") $(if $(INPAINT),--inpaint "$(INPAINT)")
SIZES  := $(if $(STATIC),--static $(STATIC),$(if $(MIN),--min $(MIN)) $(if $(OPT),--opt $(OPT)) $(if $(MAX),--max $(MAX)))

# Installed without bytecode (half of torch is never imported), so what is imported is compiled once and kept.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo engines serve test test-server test-load test-slow test-gpu fuzz scores bench docs lint format clean

help:  ## Print this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-11s %s\n", $$1, $$2 }'

demo: $(SHAPES)  ## From nothing to a picture: export checkpoints/shapes, then make out/demo.png (PROMPT=… SEED=…).
	@mkdir -p out
	$(BIN)/kandinsky22 generate engines/shapes "$(PROMPT)" --seed $(SEED) -o out/demo.png --force

serve: $(SHAPES)  ## From nothing to a server of checkpoints/shapes at 127.0.0.1:PORT (SERVE="--low-memory …": further flags).
	$(BIN)/kandinsky22 serve engines/shapes --port $(PORT) --data out/serve $(SERVE)

# Further decoders: CONTROLNET=… INPAINT=… (folders or Hub ids).
# The sizes of plans: MIN=384 OPT=1024 MAX=2048, or STATIC=1024; BATCH=4 pictures at once; FLAVOUR=tensorrt|tensorrt-rtx.
engines: $(READY)  ## TensorRT plans of CHECKPOINT=… (a folder or a Hub id) in engines/NAME, exported first where it is new.
	test -f "engines/$(NAME)/manifest.json" || \
		$(BIN)/kandinsky22-export "$(CHECKPOINT)" $(DECODERS) -o "engines/$(NAME)" --precision $(PRECISION)
	$(BIN)/kandinsky22 build "engines/$(NAME)" --flavour $(FLAVOUR) --batch $(BATCH) $(SIZES)

# A test that hangs says where, and ends as failed, long before whoever runs the suite loses patience.
test: $(READY)  ## Run the tests that need no GPU and no patience.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
		-o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

test-server: $(READY)  ## Test the server under load and kills, and its page in a browser (Debian's chromium).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m server tests/serve

test-load: $(READY)  ## Measure the server: polls under load, what batches gain, what the server costs (a quiet machine).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "server or load" tests/serve/test_load.py -s

test-slow: $(READY)  ## Run the tests that take minutes or gigabytes: full parity, the published size.
	$(BIN)/python -m pytest -m slow

test-gpu: $(SHAPES)  ## Run the tests that need an NVIDIA GPU (install an extra first, see docs/gpu.md; BUNDLE=…).
	KANDINSKY22_BUNDLE="$(BUNDLE)" $(BIN)/python -m pytest -m gpu tests/gpu -s

fuzz: $(SHAPES)  ## Give everything that reads somebody's files random ones, other ones every time, for MINUTES=30.
	SHAPES_BUNDLE="$(abspath $(dir $(SHAPES)))" $(BIN)/python -m tests.fuzz $(MINUTES)

scores: $(READY)  ## Score every task on unseen cases with the runtime and with diffusers: the tables of checkpoints/shapes.
	$(BIN)/kandinsky22-export checkpoints/shapes/decoder --controlnet checkpoints/shapes/controlnet-depth \
		--inpaint checkpoints/shapes/inpaint -o engines/shapes-tasks --force
	$(BIN)/python checkpoints/shapes/evaluate.py --bundle engines/shapes-tasks

# Bundles of the published sizes are exported with random weights where they are missing; QUICK=1 measures shapes instead.
# What the two programs take: BENCH="--sizes 512 …", FRONTIER="--settings Karras …".
bench: $(READY) $(SHAPES_SHALLOW) $(SHAPES_INT8) $(if $(QUICK),,$(FULL) $(FULL_INT8))  ## Measure latency, memory and quality beside diffusers: benchmarks/reports (QUICK=1: of shapes, in minutes).
	$(BIN)/python -m benchmarks.run $(if $(QUICK),$(OF_SHAPES),$(dir $(FULL))) $(BENCH)
	$(BIN)/python -m benchmarks.frontier $(if $(QUICK),$(OF_SHAPES) --int8 $(dir $(SHAPES_INT8)),$(dir $(FULL)) \
		--int8 $(dir $(FULL_INT8))) --shapes $(dir $(SHAPES_SHALLOW)) --shapes-int8 $(dir $(SHAPES_INT8)) $(FRONTIER)

OF_SHAPES := $(dir $(SHAPES_SHALLOW)) --checkpoint checkpoints/shapes/decoder --quick --name quick

$(FULL): $(READY)
	$(BIN)/kandinsky22-export $(RANDOM) --precision fp16 -o $(dir $(FULL))

# Calibrated on little: random weights paint nothing, and only their speed is asked for.
$(FULL_INT8): $(READY)
	$(BIN)/kandinsky22-export $(RANDOM) --precision int8 -o $(dir $(FULL_INT8)) --calibration-samples 9

# Calibrated on captions of its own kind, which none of the prompts that it is scored on is.
OWN := --shallow --calibration checkpoints/shapes/calibration.txt --jobs 2 --force

$(SHAPES_SHALLOW): $(SHAPES)
	$(BIN)/kandinsky22-export checkpoints/shapes/decoder -o $(dir $(SHAPES_SHALLOW)) $(OWN)

$(SHAPES_INT8): $(SHAPES)
	$(BIN)/kandinsky22-export checkpoints/shapes/decoder --precision int8 -o $(dir $(SHAPES_INT8)) $(OWN)

docs: $(READY)  ## Write docs/parameters.md from the declaration of every parameter.
	$(BIN)/python -c "from kandinsky22.request import table; print(table.markdown(), end='')" > docs/parameters.md.new
	mv docs/parameters.md.new docs/parameters.md

lint: $(READY)  ## Check style, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what was built: environment, bundles, pictures, caches.
	rm -rf .venv out build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -o -name '*.egg-info' | xargs rm -rf
	find engines -mindepth 1 ! -name README.md -delete

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile $(TORCH)
	$(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	touch $@

$(SHAPES): $(READY) $(shell find export/kandinsky22_export runtime/kandinsky22/bundle runtime/kandinsky22/schedulers -name "*.py") $(wildcard checkpoints/shapes/*/*/*.safetensors checkpoints/shapes/*/*/*.json)
	$(BIN)/kandinsky22-export checkpoints/shapes/decoder -o engines/shapes --jobs 2 --force
