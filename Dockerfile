# The wheel is built where the compilers are and installed where they are not.
# Rule: the final image runs as an ordinary user, writes nothing, and is stopped by SIGTERM, which drains.

FROM rust:1-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir 'maturin>=1.16,<2'
WORKDIR /src
COPY Cargo.toml Cargo.lock pyproject.toml README.md LICENSE ./
COPY rust_core rust_core
COPY bench bench
COPY python python
RUN /opt/build/bin/maturin build --release --locked --out /dist

FROM python:3.12-slim
ARG EXTRAS=""
COPY --from=build /dist /dist
RUN pip install --no-cache-dir "$(ls /dist/*.whl)${EXTRAS}" && rm -rf /dist \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin tidegate
USER 10001
WORKDIR /etc/tidegate
ENV APP_ENV=production PYTHONUNBUFFERED=1
EXPOSE 8086 9090
STOPSIGNAL SIGTERM
# /health answers as long as the process serves; whether it should get traffic is /ready, for the orchestrator to ask
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
  CMD ["python", "-c", "import os,urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('GATEWAY_SERVER_PORT', '8086')}/health\", timeout=2)"]
ENTRYPOINT ["tidegate"]
CMD ["serve", "--profile", "attchat-gateway"]
