# syntax=docker/dockerfile:1
# Fusion node and gateway, and with EXTRAS=agent an agent on ONNX Runtime. From the repository's root:
#   docker build --file docker/fusion.Dockerfile --tag devit-fusion .
#
# A tag names a series of releases. To pin one image, look up its digest in a registry that you trust:
#   docker buildx imagetools inspect python:3.11-slim-bookworm
# and build with --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=fusion,http
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
    && /opt/devit/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[${EXTRAS}]"

FROM ${BASE}
COPY --from=build /opt/devit /opt/devit
# A new volume on /engines gets the owner of the folder in the image.
RUN install -d -o 10001 -g 10001 -m 0750 /engines
ENV PATH=/opt/devit/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
USER 10001:10001
CMD ["devit", "--help"]
