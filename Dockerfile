# rntp on NVIDIA GPUs:
#
#   docker build -t rntp .
#   docker run --gpus all --ipc=host -v $PWD/build:/rntp/build -v $PWD/runs:/rntp/runs rntp \
#       train config.yaml
#
# --ipc=host: NCCL talks through shared memory, of which a container has 64 MB otherwise.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# The development image, because Triton compiles kernels with its headers; python3-dev for its stubs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /rntp
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN python3 -m venv /opt/venv && pip install --no-cache-dir 'torch>=2.11'

# What changes seldom goes first: a new commit does not install packages again.
COPY pyproject.toml README.md LICENSE ./
COPY rntp/__init__.py rntp/__init__.py
RUN pip install --no-cache-dir '.[prep,text,hf,s3]' && pip uninstall -y rntp

COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

# tini passes SIGTERM on, so that a run saves before the container ends; give it the time
# (docker stop --time 300, terminationGracePeriodSeconds).
ENTRYPOINT ["tini", "--", "rntp"]
CMD ["--help"]
