# make demo   install, make the sample data, train and test on it, draw the results
# make test   install, lint, run the tests
# Finished steps are not repeated; an interrupted training is resumed.
#
# PYTHON=python3.11                       the Python that .venv is made from (3.10 to 3.12)
# TORCH='torch==2.13.0+cu130 --index-url ...'   what pip installs for PyTorch (see tools/dev/install.py)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
RUN := .venv/bin/python
CONFIG := configs/mask_rcnn_convneur_m1_sample.py
DEMO := work_dirs/demo

.PHONY: demo test lint install clean

demo: $(DEMO)/.tested $(DEMO)/training.png
	@echo "detections beside their ground truth: $(DEMO)/pictures"
	@echo "loss and AP over time:                $(DEMO)/training.png"
	@echo "checkpoint, log and config:           $(DEMO)"

test: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(RUN) -m pytest

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

install:
	@$(PYTHON) tools/dev/install.py

data/.sample: tools/make_sample_data.py $(wildcard tools/sample_data/*.py) | install
	rm -rf data/sample
	$(RUN) tools/make_sample_data.py --task sample
	@touch $@

# New data or another recipe: a new run.
$(DEMO)/.started: data/.sample $(CONFIG) $(wildcard configs/_base_/*/*.py)
	rm -rf $(@D)
	@mkdir -p $(@D)
	@touch $@

$(DEMO)/.trained: $(DEMO)/.started | install
	$(RUN) tools/train.py $(CONFIG) --work-dir $(@D) --resume
	@touch $@

$(DEMO)/.tested: $(DEMO)/.trained | install
	$(RUN) tools/test.py $(CONFIG) "$$(cat $(@D)/last_checkpoint)" --work-dir $(@D) \
		--show-dir $(@D)/pictures
	@touch $@

$(DEMO)/training.png: $(DEMO)/.trained tools/plot_training.py | install
	$(RUN) tools/plot_training.py $(@D)

# Everything the targets above made, but .venv and trainings of your own.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache $(DEMO) \
		data/.sample data/sample data/cue data/legend
	find mmconvneur tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +
