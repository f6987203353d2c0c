# Windlass with every broker. `--build-arg FEATURES=sqlite,nats` leaves Kafka (OpenSSL, librdkafka) out: a static binary.
#
# scripts/image takes the same steps without an engine, checks the size, and runs what came of it.

FROM rust:1.95-bookworm AS build
ARG FEATURES=sqlite,nats,kafka
# s: small; 3: fast.
ARG OPT_LEVEL=s
# The build's tools leave nothing in the image: what the base's release has is right.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates musl-tools perl pkg-config \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY jobs/Cargo.toml jobs/
COPY scripts/skeleton scripts/image-build scripts/image-root scripts/image-sbom scripts/
# Dependencies in a layer of their own, which a change of the sources leaves alone.
RUN scripts/skeleton . && scripts/image-build "$FEATURES"
COPY src src
COPY config config
COPY docs/openapi.json docs/
# Newer than what stood in for it.
RUN find src -name '*.rs' -exec touch {} + \
    && binary=$(scripts/image-build "$FEATURES") \
    && scripts/image-root "$binary" /image \
    && scripts/image-sbom "$FEATURES" >/image/usr/share/windlass/sbom.spdx

# Nothing but the binary, the libraries it names, certificates and a user: no shell, no package manager.
FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
ARG FEATURES=sqlite,nats,kafka
LABEL org.opencontainers.image.title="windlass" \
      org.opencontainers.image.description="A job worker that loses nothing: NATS JetStream, Kafka, or an embedded SQLite queue" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      dev.windlass.features="$FEATURES" \
      dev.windlass.sbom="/usr/share/windlass/sbom.spdx" \
      dev.windlass.sbom.format="SPDX-2.3"
COPY --from=build /image /
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 7464
# The grace period of 25 s and 3 s to leave fit the 30 s that an orchestrator waits.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["/usr/local/bin/windlass", "ready"]
ENTRYPOINT ["/usr/local/bin/windlass"]
CMD ["run"]
