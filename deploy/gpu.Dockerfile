# CUDA and cuDNN come with onnxruntime-gpu's own dependencies; the host brings the driver and the container toolkit.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY client client
COPY server server
COPY exporter exporter
# The pins name the build for CPUs, and the two must never be installed together.
RUN python -m venv /opt/neuroglot \
    && sed '/^onnxruntime==/d' constraints.txt > gpu-constraints.txt \
    && /opt/neuroglot/bin/pip install --no-cache-dir --constraint gpu-constraints.txt '.[gpu,tracing]'

FROM python:3.11-slim
RUN useradd --system --no-create-home --uid 10001 neuroglot
COPY --from=build /opt/neuroglot /opt/neuroglot
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute NEUROGLOT_DEVICE=cuda
# Freed memory goes back to the system: see deploy/sizing.md.
ENV MALLOC_ARENA_MAX=2 MALLOC_TRIM_THRESHOLD_=33554432 MALLOC_MMAP_THRESHOLD_=1048576
USER 10001
EXPOSE 50051 9464
ENTRYPOINT ["/opt/neuroglot/bin/neuroglot", "serve"]
# Only the container's own network reaches it; what is published outside is the caller's choice.
CMD ["--config", "/etc/neuroglot/neuroglot.toml", "--address", "0.0.0.0:50051", "--insecure"]
