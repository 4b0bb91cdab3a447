FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY client client
COPY server server
COPY exporter exporter
RUN python -m venv /opt/neuroglot \
    && /opt/neuroglot/bin/pip install --no-cache-dir --constraint constraints.txt '.[cpu,tracing]'

FROM python:3.11-slim
RUN useradd --system --no-create-home --uid 10001 neuroglot
COPY --from=build /opt/neuroglot /opt/neuroglot
# Freed memory goes back to the system: see deploy/sizing.md.
ENV MALLOC_ARENA_MAX=2 MALLOC_TRIM_THRESHOLD_=33554432 MALLOC_MMAP_THRESHOLD_=1048576
USER 10001
EXPOSE 50051 9464
ENTRYPOINT ["/opt/neuroglot/bin/neuroglot", "serve"]
# Only the container's own network reaches it; what is published outside is the caller's choice.
CMD ["--config", "/etc/neuroglot/neuroglot.toml", "--address", "0.0.0.0:50051", "--insecure"]
