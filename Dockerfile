# Ouzel in a container: `docker build -t ouzel .` for CPU, `--target openvino` without TensorFlow, `--target gpu` for
# NVIDIA GPUs.
#
# The base is given by tag, as its digest changes with every security update. To pin it (and you should, where images are
# promoted from one environment to the next): --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
# Python packages are pinned by hash in any case: the lock files hold the runtimes, the default model's weights, W&B and
# the stores of buckets. For another extra (registry, heif, inventory) add it to `lock` in the Makefile, and `make lock`.
# The steps hold on any Debian with python3 and its venv module.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS venv
RUN python3 -m venv /opt/ouzel
ENV PATH=/opt/ouzel/bin:$PATH
WORKDIR /src

# --- what is installed, for CPU -------------------------------------------------------------------------------------
FROM venv AS install-cpu
COPY requirements.lock ./
# TensorFlow's C++ headers are a quarter of it and serve only those who compile against it.
RUN python -m pip install --no-cache-dir --timeout 60 --require-hashes -r requirements.lock \
    && rm -rf /opt/ouzel/lib/python3*/site-packages/tensorflow/include
COPY pyproject.toml README.md LICENSE settings.toml ./
COPY schemas schemas
COPY consumer consumer
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation . \
    && python -m pip uninstall --yes --quiet hatchling editables pip setuptools
# The default model, built now so that a replica starts without building it.
RUN python -c "from pathlib import Path; from consumer.adapters.default_model import default_model; default_model(Path('/opt/ouzel/share/ouzel'), threads=1, device='cpu')"

# --- what is installed, for OpenVINO alone: no TensorFlow, a third of the size --------------------------------------
FROM venv AS install-openvino
COPY requirements-openvino.lock ./
RUN python -m pip install --no-cache-dir --timeout 60 --require-hashes -r requirements-openvino.lock
COPY pyproject.toml README.md LICENSE settings.toml ./
COPY schemas schemas
COPY consumer consumer
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation . \
    && python -m pip uninstall --yes --quiet hatchling editables pip setuptools
# Building the default model takes TensorFlow; running it does not.
COPY --from=install-cpu /opt/ouzel/share /opt/ouzel/share

# --- what is installed, for NVIDIA GPUs -----------------------------------------------------------------------------
# CUDA comes with the Python packages; the host needs its driver and the NVIDIA container toolkit.
FROM venv AS install-gpu
COPY requirements-gpu.lock ./
RUN python -m pip install --no-cache-dir --timeout 60 --require-hashes -r requirements-gpu.lock \
    && rm -rf /opt/ouzel/lib/python3*/site-packages/tensorflow/include
COPY pyproject.toml README.md LICENSE settings.toml ./
COPY schemas schemas
COPY consumer consumer
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation . \
    && python -m pip uninstall --yes --quiet hatchling editables pip setuptools
RUN CUDA_VISIBLE_DEVICES= python -c "from pathlib import Path; from consumer.adapters.default_model import default_model; default_model(Path('/opt/ouzel/share/ouzel'), threads=1, device='cpu')"

# --- what runs ------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS runtime
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="ouzel" \
      org.opencontainers.image.description="A long-running Kafka consumer service that labels images and loses none." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Nothing is written but to /tmp: give it as tmpfs under a read-only root. Models that are fetched, and what runtimes
# compile, are kept in /tmp/cache: a volume there saves a replica the fetching. Probes and metrics answer on every
# address of the container; nothing there changes state.
ENV PATH=/opt/ouzel/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OUZEL_HEALTH__HOST=0.0.0.0
WORKDIR /app
VOLUME /tmp
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('OUZEL_HEALTH__PORT', '8080') + '/livez', timeout=4)"]
ENTRYPOINT ["ouzel"]
CMD ["run"]

# Cannot be tried without an NVIDIA GPU and its container toolkit: docker run --gpus all -e OUZEL_MODEL__DEVICE=gpu:0 ...
FROM runtime AS gpu
COPY --from=install-gpu /opt/ouzel /opt/ouzel

FROM runtime AS openvino
COPY --from=install-openvino /opt/ouzel /opt/ouzel

FROM runtime AS cpu
COPY --from=install-cpu /opt/ouzel /opt/ouzel
