# copra and all that it needs, for Kubernetes and Apptainer (see docs/kubernetes.md and docs/clusters.md):  docker build -t copra .
# torch is the build that PyPI has, with CUDA. For machines without GPUs a smaller one will do:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu -t copra .
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/copra

# Versions first: they change less often than the code, and Docker keeps their layers.
COPY requirements.lock requirements-cpu.lock requirements-cuda.lock requirements-kubernetes.lock ./
RUN install="pip install --no-deps --require-hashes --requirement" \
    && { $install requirements-cpu.lock 2> /dev/null || true; } \
    && $install requirements.lock \
    && { pip check > /dev/null || $install requirements-cuda.lock; } \
    && pip check \
    && $install requirements-kubernetes.lock \
    && awk '/^[^ ]/ { plugin = /^snakemake-storage/ } plugin' requirements-kubernetes.lock > plugin \
    && pip download --no-deps --require-hashes --dest wheels --requirement plugin

COPY pyproject.toml setup.py README.md LICENSE Snakefile ./
COPY src src
COPY workflow workflow
COPY config config
COPY profiles profiles
RUN pip install --no-deps --no-build-isolation .

# In each pod Snakemake has pip install the storage plugin once more. pip finds it here and asks no network.
ENV PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_FIND_LINKS=/opt/copra/wheels

RUN useradd --create-home --uid 1000 copra
USER copra
WORKDIR /workdir
CMD ["copra", "--help"]
