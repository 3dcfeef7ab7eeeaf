# syntax=docker/dockerfile:1
# One image with the six programs; what runs is chosen by the command: gateway, chat_service, notify_service, indexer, migrations, probe.
# Built as it was never logged in to: no shell, no package manager, not root, nothing that has to be written.
# Bases are pinned by digest: the same commit gives the same image, and a newer base is a commit.

# The bill of materials lists our crates, too: Cargo.lock is in the context, and in no image.
ARG BUILDKIT_SBOM_SCAN_CONTEXT=true

FROM rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake make gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches make a second build compile only what changed; the programs are copied out of them. Paths are the same on every machine.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked \
        --package gateway --package chat_service --package notify_service --package indexer --package migrations --package probe \
    && mkdir /programs \
    && cp target/release/gateway target/release/chat_service target/release/notify_service target/release/indexer \
        target/release/migrations target/release/probe /programs/ \
    && strip /programs/*

FROM gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="Fechatter" \
      org.opencontainers.image.description="A chat platform for companies behind its own edge gateway" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot" \
      org.opencontainers.image.base.digest="sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /programs/ /usr/local/bin/
# As in the Helm chart.
USER 10001:10001
# Public HTTPS and its redirects; chat_service, notify_service, indexer.
EXPOSE 8443 8080 6688 6687 6689
CMD ["/usr/local/bin/gateway"]
