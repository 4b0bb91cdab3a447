"""gRPC in front of the core, from a request's bytes to an answer's message.

Imports `models` (the core's front), what errors of `intake` become, `telemetry`, `config` and `core`. Imported by
`lifecycle`.

Modules:
    wire: bytes to a message, or what is wrong with it as a message
    requests: messages to the core's words
    responses: the core's words to messages
    statuses: exceptions to gRPC statuses and their details, the one table
    auth: who calls, by a bearer token or by the certificate of the connection
    concurrency: how many calls run at once, of a tenant, of a connection and in all
    receiving: how many calls wait for a request at once, and for how long
    held_bytes: bytes of requests that were read and of results that wait to be written
    stream: AnalyzeGroups, many groups in flight on one stream
    probing: whether a model computes what its bundle's export recorded
    service: the methods: read, call the core, write
"""
