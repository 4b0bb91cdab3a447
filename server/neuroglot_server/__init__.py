"""Serves bundles over gRPC.

The folders are in the order of a request, and imports go downwards only (`make check`):

    command, lifecycle  from start to stop
    transport           gRPC in front of the core
    models              served models, loaded and retired while others run
    plan                what runs for a request, a module an RPC
    neurons             types, contributions and scores of a group; what interventions do to each row
    intake, cache       a request before it runs; the prefix cache and single flight
    scheduler           which steps form the next batch
    engine              ONNX Runtime sessions and the KV cache
    kernels             the science on arrays
    telemetry           metrics, health, traces, logs
    config              options, files, tenants
    core                requests, results and errors, as all of the above speak of them
"""
