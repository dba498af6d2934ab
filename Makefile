# Each target makes the virtual environment .venv first, when it is missing or out of date.
.DEFAULT_GOAL := help
.PHONY: help demo demo-music demo-audiolm demo-duplex demo-text demo-text-full test test-slow test-faults lint format clean-demo

BIN := .venv/bin
DEMO_FLAGS ?=
TEST_FLAGS ?= -n auto --dist loadfile

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s%s\n", $$1, $$2 }' Makefile

.venv/.installed: setup.py constraints.txt .ci/environment
	.ci/environment .venv
	@touch $@

demo: .venv/.installed  ## train SALM on synthesized spoken commands and report its WER
	$(BIN)/python examples/speechlm2/salm_demo.py $(DEMO_FLAGS)

demo-music: .venv/.installed  ## train text to music on synthesized loops and measure its control
	$(BIN)/python examples/codec_lm/demo.py $(DEMO_FLAGS)

demo-audiolm: .venv/.installed  ## train AudioLM on synthesized melodies and measure what it goes on with
	$(BIN)/python examples/audiolm/demo.py $(DEMO_FLAGS)

demo-duplex: .venv/.installed  ## train a duplex model on synthesized dialogues and converse with it
	$(BIN)/python examples/speechlm2/s2s_duplex_demo.py $(DEMO_FLAGS)

demo-text: .venv/.installed  ## train four text models on star graphs and compare their answers
	$(BIN)/python examples/textlm/demo.py $(DEMO_FLAGS)

demo-text-full: .venv/.installed  ## the same on the published size star_easy, in about an hour
	$(BIN)/python examples/textlm/demo_full.py $(DEMO_FLAGS)

test: .venv/.installed  ## run the default tests: offline, about 6 minutes on 2 cores
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(TEST_FLAGS)

test-slow: .venv/.installed  ## run the slow tests: whole trainings, clean installations
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow $(TEST_FLAGS)

test-faults: .venv/.installed  ## break everything on purpose and print what survived, in half an hour
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m faults tests/faults --no-loadscope-reorder $(TEST_FLAGS)

lint: .venv/.installed  ## check style, format and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: .venv/.installed  ## put all code in the house's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean-demo:  ## throw away the demos' stages, so that they start anew
	rm -rf demo
