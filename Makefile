# Everything needs only Python >= 3.11 and < 3.14 as python3 (or PYTHON=...), make and git.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.DEFAULT_GOAL := help

# What each study runs besides the grid of its YAML file.
SMALL_VIT := model.embed_dim=96 model.depth=4 model.num_heads=6
SYNFLOW := scorer=synflow warmup=none sparsity=0.9,0.98,0.99,0.995,0.999
COLLAPSE := "model=vgg11 model.width=16" "model=resnet20" "model=vit_cifar_bn $(SMALL_VIT)" \
            "model=vit_cifar $(SMALL_VIT) warmup=none" "model=vgg11 model.width=16 $(SYNFLOW)" \
            "model=resnet20 $(SYNFLOW)" "model=vit_cifar $(SMALL_VIT) $(SYNFLOW)" \
            "model=vgg19 model.width=16 scorer=snip,gts" "model=resnet56 scorer=snip,gts"
EACH_SEED := "+seeds.initialization=0,1,2,3,4" "+seeds.data=0,1,2,3,4" "+seeds.probes=0,1,2,3,4"
NUM_PROBES := "scorer.num_probes=1,2,4,8,16,32,64 scorer.batch_size=50" "scorer.num_probes=1,4,16" \
              "scorer=mts scorer.num_draws=1,2,4,8,16"
TASKS := "" "scorer=none sparsity=0"
TABLES := smoke cifar10-resnet18 cifar10-vgg19 cifar100-resnet18 cifar100-vgg19 \
          tinyimagenet-resnet18 imagenet-resnet50 cifar10-vit
STUDIES := estimators warmup collapse seeds diagonals tasks
.PHONY: help setup run test test-fast test-device faults coverage mutation lint format table-default evidence \
        evidence-gpu lock dist clean \
        $(addprefix table-,$(TABLES)) $(addprefix study-,$(STUDIES))

help:  ## Show this help
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-27s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Create .venv with everything at the locked versions

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("pai needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Try make PYTHON=python3.12" % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] < (3, 14) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -nE 's/^(uv==[0-9.]+).*/\1/p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

run: $(STAMP)  ## Run the default experiment: prune a small ResNet at initialization, train it
	$(BIN)/pai

test: $(STAMP)  ## Run linters, type checker and all tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(STAMP)  ## Run the tests that take less than about ten seconds each
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not faults"

test-device: $(STAMP)  ## Run the tests for GPUs on a device that is simulated (needs a C++ compiler and ninja)
	$(BIN)/python -m pytest -m gpu --simulated-device tests

faults: $(STAMP)  ## Disturb whole runs: kills, full disks, dead servers, hostile configurations (half an hour)
	$(BIN)/python -m pytest -m faults -s tests $(OPTIONS)

coverage: $(STAMP)  ## Measure which lines of pai/ the fast tests run; fails below 90 %
	$(BIN)/python -m pytest -m "not slow and not faults" --cov --cov-report=term-missing:skip-covered $(OPTIONS)

mutation: $(STAMP)  ## Change the code of scores and masks and see which changes no test notices (hours; OPTIONS="pai.saliency*")
	$(BIN)/mutmut run $(OPTIONS)
	$(BIN)/mutmut results

lint: $(STAMP)  ## Check style, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SWEEPS = PYTHON=$(BIN)/python OPTIONS='$(OPTIONS)' scripts/sweeps.sh

table-default: $(STAMP)  ## The default scorer beside none, random and magnitude on the digits
	@$(SWEEPS) default_table runs/default_table "" "scorer=none sparsity=0" --

# The grid, then the scorers that depend on neither data nor warmup, then the dense reference, one run
# per seed, then magnitude after training.
$(addprefix table-,$(TABLES)): table-%: $(STAMP)
	@$(SWEEPS) $(subst -,_,$*)_table runs/$(subst -,_,$*)_table "" "scorer=random,magnitude warmup=none" \
		"scorer=none warmup=none sparsity=0" "baseline=magnitude_after_training scorer=magnitude warmup=none" \
		-- --rows scorer,warmup

table-smoke:  ## The machinery of the paper's tables on the digits, in minutes on a CPU
table-cifar10-resnet18:  ## Paper table (a GPU, days); OPTIONS="dataset.root=DIR device=cuda:0 ..." for all jobs
table-cifar10-vgg19:  ## Paper table, likewise
table-cifar100-resnet18:  ## Paper table, likewise
table-cifar100-vgg19:  ## Paper table, likewise
table-tinyimagenet-resnet18:  ## Paper table, likewise
table-imagenet-resnet50:  ## Paper table, likewise
table-cifar10-vit:  ## Paper table, likewise

# $(call comparison,EXPERIMENT,FOLDER,JOBS): the comparison, the JOBS without BatchNorm warmup, and GraSP
# with its scores inverted.
define comparison
	@$(SWEEPS) $(1) $(2)/main "" "scorer=random,magnitude warmup=none" \
		"scorer=none sparsity=0 warmup=none" -- --ignore warmup
	@$(SWEEPS) $(1) $(2)/no_warmup "warmup=none $(3)" --
	@$(SWEEPS) $(1) $(2)/grasp "scorer=grasp sanity=invert" -- --rows scorer,sanity
endef
comma := ,
WITHOUT_WARMUP := $(subst $() ,$(comma),scorer=snip grasp synflow fp fts hp hts gp gts mp)
evidence: $(STAMP)  ## The paper's comparison on CIFAR-10 at a size for 2 cores; OPTIONS="dataset.root=DIR"
	$(call comparison,evidence_cpu,runs/evidence,$(WITHOUT_WARMUP))

evidence-gpu: $(STAMP)  ## The same with ResNet-18 on a GPU; OPTIONS="dataset.root=DIR ..."
	$(call comparison,evidence_gpu,runs/evidence_gpu)

study-warmup: $(STAMP)  ## How long must BatchNorm be warmed up? OPTIONS="dataset.root=DIR"
	@$(SWEEPS) study_warmup runs/study_warmup "" "warmup=bn_batches warmup.num_batches=1,10,100" \
		"warmup=none baseline=pretrain baseline.epochs=1 baseline.prune_step=null" \
		-- --rows scorer,warmup,warmup.num_batches,baseline

study-estimators: $(STAMP)  ## Measure error and time of curvature estimators; OPTIONS="--dataset-root DIR --out DIR"
	$(BIN)/python scripts/study_estimators.py $(OPTIONS)

study-collapse: $(STAMP)  ## Which layers die at which sparsity; OPTIONS="dataset.root=DIR", CIFAR-10 as images
	@$(SWEEPS) study_collapse runs/study_collapse $(COLLAPSE)
	$(BIN)/python scripts/study_collapse.py runs/study_collapse

study-seeds: $(STAMP)  ## How masks and accuracy vary over seeds and probes, on the digits
	@$(SWEEPS) study_seeds runs/study_seeds $(EACH_SEED)
	@$(SWEEPS) study_seeds_probes runs/study_seeds $(NUM_PROBES)
	@$(SWEEPS) study_seeds_accuracy runs/study_seeds $(EACH_SEED)
	$(BIN)/python scripts/study_seeds.py runs/study_seeds

study-diagonals: evidence  ## Does a more exact diagonal prune better? From the runs of make evidence
	$(BIN)/python scripts/gains.py runs/evidence/main --ignore warmup \
		--gain scorer=gd scorer=hd --gain scorer=gp scorer=hp --gain scorer=gts scorer=hts \
		--gain scorer=md scorer=hd --gain scorer=mp scorer=hp --gain scorer=mts scorer=hts

study-tasks: $(STAMP)  ## Whether scorers rank alike on digits, Cora (PAI_DATA=DIR, or downloaded) and text
	@$(SWEEPS) study_tasks_images runs/study_tasks/images $(TASKS)
	@$(SWEEPS) study_tasks_graph runs/study_tasks/graph $(TASKS)
	@$(SWEEPS) study_tasks_language runs/study_tasks/language $(TASKS)
	$(BIN)/python scripts/study_tasks.py runs/study_tasks

lock: $(STAMP)  ## Renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-header --upgrade --quiet --output-file requirements.lock

dist: $(STAMP)  ## Build wheel and sdist and try each in an empty environment; OPTIONS for uv pip install
	UV=$(CURDIR)/$(BIN)/uv PYTHON=$(CURDIR)/$(BIN)/python OPTIONS='$(OPTIONS)' scripts/check_dist.sh

clean:  ## Remove the environment and all caches (not runs/)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage mutants build dist *.egg-info
