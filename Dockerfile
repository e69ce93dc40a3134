# The service in a container: `spherecf serve` without root, on a read-only file system. How to run it: docs/serve.md.

FROM python:3.13-slim AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/spherecf
# torch alone, and first: the wheel for the CPU is a tenth of the default one, and this layer outlives changes of ours.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/spherecf/bin/pip install --index-url "$TORCH_INDEX" "torch>=2.6,<2.14"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /opt/spherecf/bin/pip install ".[serve,encryption]" \
    && /opt/spherecf/bin/spherecf --version

FROM python:3.13-slim
LABEL org.opencontainers.image.title="SphereCF" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 spherecf \
    && useradd --uid 10001 --gid spherecf --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin spherecf \
    && install --directory --owner=spherecf --group=spherecf --mode=0700 /data
COPY --from=build /opt/spherecf /opt/spherecf
ENV PATH=/opt/spherecf/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/api/health', timeout=4)"]
ENTRYPOINT ["spherecf"]
CMD ["serve", "--host", "0.0.0.0", "--gallery", "/data/people.gallery"]
