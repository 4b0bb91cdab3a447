"""One ONNX Runtime session a component: from steps of rows to one pass and back; the KV cache on the host or a device.

Imports `kernels`, `config` and `core`. Imported by the folders above it, `scheduler` to `models`.
"""
