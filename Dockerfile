# syntax=docker/dockerfile:1
# The operator and the kubectl plugin, built from source; the result holds two static programs, root certificates and nothing else.
ARG RUST=1.95
FROM docker.io/library/rust:${RUST}-alpine AS build
RUN apk add --no-cache build-base ca-certificates
WORKDIR /src
COPY . .
# The test bed is a workspace member, so its manifest must be there; it is not built.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package backstep --bin backstep --bin kubectl-backstep \
    && mkdir -p /out/usr/local/bin /out/etc/ssl/certs /out/var/lib/backstep \
    && cp target/release/backstep target/release/kubectl-backstep /out/usr/local/bin/ \
    && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
    && chown -R 65532:65532 /out/var/lib/backstep

FROM scratch
LABEL org.opencontainers.image.title="Backstep" \
      org.opencontainers.image.description="The undo button of a Kubernetes namespace" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ /
# Memory of a capture goes back at once.
ENV MIMALLOC_PURGE_DELAY=0 MIMALLOC_ARENA_EAGER_COMMIT=0
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/backstep"]
CMD ["run"]
