# The wheel is built where the compilers are and installed where they are not.
# Profiles that need more than the core say so: docker build --build-arg EXTRAS=[im,otel] . makes the image for im-gateway.
# Rule: the final image runs as an ordinary user, writes nothing, and is stopped by SIGTERM, which drains.

FROM rust:1-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml ./
# maturin, and the compiler of the .proto files; an older pip knows no groups
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir 'pip>=25.1' \
 && /opt/build/bin/pip install --no-cache-dir --group build
COPY Cargo.toml Cargo.lock README.md LICENSE ./
COPY rust_core rust_core
COPY bench bench
COPY tools/protos.py tools/
COPY python python
RUN /opt/build/bin/python tools/protos.py && /opt/build/bin/maturin build --release --locked --out /dist

FROM python:3.12-slim
ARG EXTRAS=""
COPY --from=build /dist /dist
RUN pip install --no-cache-dir "$(ls /dist/*.whl)${EXTRAS}" && rm -rf /dist \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin tidegate
USER 10001
WORKDIR /etc/tidegate
ENV APP_ENV=production PYTHONUNBUFFERED=1
# attchat-gateway's clients, those of gogate and im-gateway, im-gateway's gRPC, metrics
EXPOSE 8086 8080 9093 9090
STOPSIGNAL SIGTERM
# /health answers as long as the process serves; whether it should get traffic is /ready, for the orchestrator to ask.
# Which port it is depends on the profile: the one that a variable names, else whichever of the defaults answers
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
  CMD ["python", "-c", "import os, sys, urllib.request as u\nnamed = [p for n in ('GATEWAY_SERVER_PORT', 'PORT', 'WEBSOCKET_PORT') if (p := os.environ.get(n))]\nfor port in named[:1] or ('8086', '8080'):\n    try:\n        sys.exit(u.urlopen(f'http://127.0.0.1:{port}/health', timeout=1).status != 200)\n    except OSError:\n        pass\nsys.exit(1)"]
ENTRYPOINT ["tidegate"]
CMD ["serve", "--profile", "attchat-gateway"]
