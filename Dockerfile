# Windlass with every broker. `--build-arg FEATURES=sqlite,nats` leaves Kafka (OpenSSL, librdkafka) out.
# First form: dependencies are built in a layer of their own, which a change of the sources leaves alone.

FROM rust:1.95-bookworm AS build
ARG FEATURES=sqlite,nats,kafka
RUN apt-get update && apt-get install -y --no-install-recommends build-essential perl pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY jobs/Cargo.toml jobs/
RUN mkdir -p src jobs/src/demo benches tests/ledger \
    && echo 'fn main() {}' | tee src/main.rs jobs/src/main.rs jobs/src/demo/main.rs tests/ledger/worker.rs tests/main.rs benches/decode.rs >/dev/null \
    && touch src/lib.rs jobs/src/lib.rs \
    && cargo build --release --locked --no-default-features --features "$FEATURES" --bin windlass
COPY src src
# Newer than what stood in for it.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --no-default-features --features "$FEATURES" --bin windlass

FROM debian:bookworm-slim
RUN useradd --uid 10001 --create-home --home-dir /data windlass
USER windlass
COPY --from=build /src/target/release/windlass /usr/local/bin/windlass
WORKDIR /data
EXPOSE 7464
# The grace period of 25 s and 3 s to leave fit the 30 s that an orchestrator waits.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["windlass", "ready"]
ENTRYPOINT ["windlass"]
CMD ["run"]
