# The casestream binary with its configuration on a slim Debian, run by a user without rights.
FROM rust:1.95-bookworm AS build
WORKDIR /src
# librdkafka is built from source; this image brings gcc, g++ and make.
COPY . .
RUN cargo build --release --locked --bin casestream

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin casestream
WORKDIR /app
COPY --from=build /src/target/release/casestream /usr/local/bin/casestream
COPY config config
USER 10001
ENTRYPOINT ["casestream"]
CMD ["run"]
