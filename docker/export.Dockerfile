# syntax=docker/dockerfile:1
# Training and export on a workstation. From the repository's root:
#   docker build --file docker/export.Dockerfile --tag devit-export .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" devit-export devit export models --out bundle
#
# On x86, pip installs a CUDA build of torch by default, which has several GB. For a CPU build, name its package index:
# --build-arg PIP_EXTRA_INDEX_URL=https://...
#
# A tag names a series of releases. To pin one image, look up its digest in a registry that you trust:
#   docker buildx imagetools inspect python:3.11-slim-bookworm
# and build with --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY contract contract
COPY decompose decompose
COPY edge_agent edge_agent
COPY engines engines
COPY export export
COPY fusion fusion
COPY gateway gateway
COPY pipeline pipeline
COPY profiling profiling
RUN python3 -m venv /opt/devit \
    && /opt/devit/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[export,timm]"

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/devit /opt/devit
ENV PATH=/opt/devit/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /work
USER 10001:10001
CMD ["devit", "--help"]
