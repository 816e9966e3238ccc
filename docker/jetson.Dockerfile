# syntax=docker/dockerfile:1
# Agent and engine builder for a Jetson with JetPack 6 or 7. From the repository's root, on a Jetson or under emulation:
#   docker build --platform linux/arm64 --file docker/jetson.Dockerfile --build-arg JETPACK=6 --tag devit-jetson:jp6 .
#
# TensorRT comes from NVIDIA's apt repository for Jetson Linux. L4T_RELEASE is the release of the board that runs the
# image, as in its /etc/apt/sources.list.d/nvidia-l4t-apt-source.list: r36.4 for JetPack 6.1 to 6.2.1, r39.2 for JetPack
# 7.2 on Orin and Thor, r38.4 for JetPack 7.1, which is for Thor alone.
#
# A tag names a series of releases. To pin one image, look up its digest in a registry that you trust:
#   docker buildx imagetools inspect ubuntu:22.04
# and build with --build-arg BASE6=ubuntu:22.04@sha256:... (BASE7 for JetPack 7).
ARG JETPACK=6
ARG BASE6=ubuntu:22.04
ARG BASE7=ubuntu:24.04

FROM ${BASE6} AS jetpack6
ARG L4T_RELEASE=r36.4
ENV L4T_RELEASE=${L4T_RELEASE}

FROM ${BASE7} AS jetpack7
ARG L4T_RELEASE=r39.2
ENV L4T_RELEASE=${L4T_RELEASE}

# One of the two stages above; both have tags.
# hadolint ignore=DL3006
FROM jetpack${JETPACK} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates openssh-client python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
ARG JETPACK
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
# It sees the system's packages, because TensorRT's binding is one of them; pip's packages take precedence over apt's.
RUN python3 -m venv --system-site-packages /opt/devit \
    && /opt/devit/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[jetson${JETPACK}]"

FROM python
ADD https://repo.download.nvidia.com/jetson/jetson-ota-public.asc /etc/apt/keyrings/jetson.asc
RUN chmod 0644 /etc/apt/keyrings/jetson.asc \
    && echo "deb [signed-by=/etc/apt/keyrings/jetson.asc] https://repo.download.nvidia.com/jetson/common ${L4T_RELEASE} main" \
        >/etc/apt/sources.list.d/jetson.list \
    && apt-get update \
    && apt-get install --yes --no-install-recommends python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/devit /opt/devit
# A new volume on /engines gets the owner of the folder in the image.
RUN install -d -o 10001 -g 10001 -m 0750 /engines
ENV PATH=/opt/devit/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 CUDA_CACHE_PATH=/tmp/cuda
USER 10001:10001
CMD ["devit", "doctor"]
