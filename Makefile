# make demo   install, make the sample data, train and test on it, draw the results
# make test   install, lint, check types, build the site, run the tests
# make docs   build the site of README, docs/ and docstrings: build/site/README.html
# make test-openmmlab        the tests with the OpenMMLab releases, in .venv-openmmlab
# make test-openmmlab-lite   those of models, weights and optimizer alone, before mmcv is compiled
# make test-classification   those of classification with mmpretrain, in .venv-classification
# make wheels  download what a GPU machine without network needs: see CONTRIBUTING.md
# Finished steps are not repeated; an interrupted training is resumed.
#
# PYTHON=python3.11                       the Python that .venv is made from (3.10 to 3.12)
# TORCH='torch==2.13.0+cu130 --index-url ...'   what pip installs for PyTorch, remembered; for a GPU
#                                         with the index that pytorch.org names for its driver
# FORCE_CUDA=1                            compile mmcv's CUDA operators where no GPU is visible

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
RUN := .venv/bin/python
PIP := $(RUN) -m pip install --progress-bar off
STAMPS := .venv/stamps
TORCH ?= $(or $(shell cat $(STAMPS)/wanted 2> /dev/null),torch==2.13.0)
CONFIG := configs/mask_rcnn_convneur_m1_sample.py
DEMO := work_dirs/demo

BUILDABLE := import ensurepip, pathlib, shutil, sysconfig; \
	assert pathlib.Path(sysconfig.get_path("include"), "Python.h").exists() and shutil.which("c++")
OPENCV_VERSION := from importlib.metadata import version; print(version("opencv-python"))
REQUIREMENT := from mmconvneur.utils.environment import TESTED; \
	print("onedl-mmcv" + TESTED["onedl-mmcv"])
OPERATORS := import torch, mmcv._ext as ops; \
	assert not torch.cuda.is_available() or ops.get_compiling_cuda_version() != "not available"
# Without debug symbols the compilers need half the time. ninja counts the files, [done/all].
compile_mmcv = PATH="$(CURDIR)/.venv/bin:$$PATH" CFLAGS=-g0 CXXFLAGS=-g0 \
	$(PIP) --verbose --no-build-isolation $(1) \
	"$$($(RUN) -c '$(REQUIREMENT)')" 2>&1 | tee .venv/mmcv.log | grep -oE '^ *\[[0-9]+/[0-9]+\]' || true

OLD := .venv-openmmlab
OLD_RUN := $(OLD)/bin/python
OLD_PIP := $(OLD_RUN) -m pip install --progress-bar off --no-build-isolation
OLD_LIMITS := 'numpy<2' 'transformers<4.56' 'setuptools>=80,<81' 'scikit-image<0.26'
# But for the tools, which refuse an mmcv without operators.
WITHOUT_OPERATORS := $(addprefix tests/test_,weights.py optim.py neural_memory.py convneur.py)

CLASSIFY := .venv-classification
CLASSIFY_RUN := $(CLASSIFY)/bin/python

# What a GPU machine without network needs beside PyTorch, torchvision, timm and what these bring, with
# the transformers that mmpretrain accepts; mmcv is compiled there. TARGET: its Python and C library.
TARGET ?= --python-version 3.12 $(addprefix --platform manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64)
CARRIED := onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain \
	addict ftfy imagecorruptions-imaug imaug mat4py model-index ordered-set platformdirs prettytable \
	pycocotools shapely six termcolor terminaltables wcwidth yapf \
	'transformers<5' 'huggingface-hub<1' 'tokenizers<0.23'
WITH_VERSIONS := import sys; from mmconvneur.utils.environment import TESTED; \
	print(*(name + TESTED.get(name, "") for name in sys.argv[1:]), sep="\n")

.PHONY: demo test lint docs install test-openmmlab test-openmmlab-lite test-classification wheels \
	clean FORCE

demo: $(DEMO)/.tested $(DEMO)/training.png
	@echo "detections beside their ground truth: $(DEMO)/pictures"
	@echo "loss and AP over time:                $(DEMO)/training.png"
	@echo "checkpoint, log and config:           $(DEMO)"

# Two parts of about the same length side by side, one core each.
test: lint docs
	$(MAKE) --jobs 2 test-quick test-slow

.PHONY: test-quick test-slow
test-quick test-slow:
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m $(if $(filter %quick,$@),"not slow",slow)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The notebook runs on one core, a minute; its outputs are kept until it changes.
docs: install
	OMP_NUM_THREADS=1 $(RUN) -m sphinx -q -E -W -c docs . build/site
	@echo "site: build/site/README.html; links to other sites, which are not followed:"
	@grep -ohE 'https?://[^] )>"'"'"'`]+' README.md CONTRIBUTING.md docs/*.md | sort -u

install: $(STAMPS)/check

test-openmmlab: $(OLD)/operators
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(OLD_RUN) -m pytest

test-openmmlab-lite: $(OLD)/packages
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(OLD_RUN) -m pytest -m 'not slow' \
		-k 'not converted and not found_by_its_name' $(WITHOUT_OPERATORS)

test-classification: $(CLASSIFY)/packages
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(CLASSIFY_RUN) -m pytest tests/test_classification.py \
		tests/test_environment.py tests/test_convneur.py

# For tools/gpu_check.py install.
wheels: $(STAMPS)/mmcv
	rm -rf $@ && mkdir $@
	$(RUN) -c '$(WITH_VERSIONS)' $(CARRIED) > $@/names
	$(RUN) -m pip download --no-deps --no-build-isolation $(TARGET) --dest $@ --requirement $@/names
	rm $@/names && du -sh $@

$(STAMPS)/tools:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
		{ echo 'error: Python 3.10 to 3.12 is needed: name one, make PYTHON=python3.11'; exit 1; }
	@$(PYTHON) -c '$(BUILDABLE)' 2> /dev/null || { echo 'error: .venv or mmcv cannot be built here:' \
		'on Debian or Ubuntu, apt-get install python3-venv python3-dev g++'; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(PIP) --upgrade pip 'setuptools>=80' wheel packaging ninja psutil
	@mkdir -p $(@D) && touch $@

$(STAMPS)/wanted: FORCE | $(STAMPS)/tools
	@echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@

$(STAMPS)/torch: $(STAMPS)/wanted
	$(PIP) $(TORCH)
	@touch $@

# What imaug and mmcv ask for, opencv-python, needs a libGL that a server may lack; the headless
# build is the same without windows.
ensure_opencv = $(1) -c 'import cv2' 2> /dev/null || $(1) -m pip install --force-reinstall \
	--no-deps "opencv-python-headless==$$($(1) -c '$(OPENCV_VERSION)')"

$(STAMPS)/package: $(STAMPS)/torch setup.py mmconvneur/utils/environment.py
	$(PIP) --no-build-isolation --editable '.[onedl,sample,dev]'
	@$(call ensure_opencv,$(RUN))
	@touch $@

# The build imports torch, so it is not isolated: isolated, it leaves the operators out without a
# word. pip caches the wheel; one that was built so, or for another PyTorch, is compiled anew.
$(STAMPS)/mmcv: $(STAMPS)/package
	@echo "mmcv's operators are compiled once, in 10 minutes on 2 idle cores; log: .venv/mmcv.log"
	@$(call compile_mmcv)
	@$(RUN) -c '$(OPERATORS)' 2> /dev/null || { \
		$(call compile_mmcv,--no-cache-dir --force-reinstall --no-deps); }
	@$(RUN) -c '$(OPERATORS)' || \
		{ echo 'error: mmcv was built without working operators: see .venv/mmcv.log'; exit 1; }
	@touch $@

$(STAMPS)/check: $(STAMPS)/mmcv
	$(RUN) -m mmconvneur.utils.environment
	@touch $@

# The last releases of OpenMMLab that fit together. mmcv-lite has no operators and no compile.
$(OLD)/packages: setup.py
	$(PYTHON) -m venv --clear $(OLD)
	$(OLD_RUN) -m pip install --upgrade pip wheel packaging ninja psutil $(OLD_LIMITS)
	$(OLD_PIP) torch==2.1.2 $(OLD_LIMITS)
	$(OLD_PIP) mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 mmsegmentation==1.2.2 mmdeploy==1.3.1 \
		ftfy regex --editable '.[sample,dev]' $(OLD_LIMITS)
	@$(call ensure_opencv,$(OLD_RUN))
	@touch $@

$(OLD)/operators: $(OLD)/packages
	$(OLD_RUN) -m pip uninstall --yes mmcv-lite
	PATH="$(CURDIR)/$(OLD)/bin:$$PATH" MMCV_WITH_OPS=1 CFLAGS=-g0 CXXFLAGS=-g0 $(OLD_PIP) mmcv==2.1.0
	$(OLD_RUN) -m mmconvneur.utils.environment
	@touch $@

# torchvision, which mmpretrain needs, has no build for the PyTorch of .venv. Classification alone
# does without mmcv's operators: pip isolates the build, which then leaves them out. The wheel in
# pip's cache may have those of another PyTorch.
$(CLASSIFY)/packages: setup.py mmconvneur/utils/environment.py
	$(PYTHON) -m venv --clear $(CLASSIFY)
	$(CLASSIFY_RUN) -m pip install --upgrade pip 'setuptools>=80,<81' wheel packaging ninja psutil
	$(CLASSIFY_RUN) -m pip install torch==2.9.1 torchvision==0.24.1
	$(CLASSIFY_RUN) -m pip install --no-cache-dir "$$($(CLASSIFY_RUN) -c '$(REQUIREMENT)')"
	$(CLASSIFY_RUN) -m pip install --no-build-isolation pytest safetensors \
		--editable '.[sample,classification]'
	@$(call ensure_opencv,$(CLASSIFY_RUN))
	$(CLASSIFY_RUN) -m mmconvneur.utils.environment
	@touch $@

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

# Everything the targets above made, but virtual environments and trainings of your own.
clean:
	rm -rf build dist wheels *.egg-info .pytest_cache .ruff_cache .mypy_cache $(DEMO) \
		data/.sample $(addprefix data/,sample cue legend fashion)
	find mmconvneur tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +
