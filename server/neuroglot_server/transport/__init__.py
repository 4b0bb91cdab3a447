"""gRPC in front of the core: request bytes in, response messages out.

Imports `models` (the core's front), the error types of `intake`, `telemetry`, `config` and `core`. Imported by
`lifecycle`.

Modules:
    wire: parses request bytes and checks messages against the contract
    requests: messages to core types
    responses: core types to messages
    statuses: the one table of exceptions to gRPC statuses and their details
    auth: identifies the tenant, by bearer token or by client certificate
    concurrency: concurrency limit on calls, per tenant, per connection and in total
    receiving: limit on calls that wait for a request message, and for how long
    held_bytes: bytes held for requests that were read and results that wait to be written
    result_sizes: estimated size of a result, before it is computed
    calls: per-call handling: request id, tenant, concurrency limit, metrics, trace and log line
    stream: AnalyzeGroups, many groups in flight on one stream
    probing: checks that a model reproduces the results recorded at export
    service: the methods: read the request, call the core, write the response
    endpoint: the gRPC server: port, health, reflection and shutdown
    reflection: server reflection, v1 and v1alpha
    tls: the server's certificate, and the name in a client's
"""
