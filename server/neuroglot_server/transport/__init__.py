"""gRPC in front of the core, from a request's bytes to an answer's message.

Modules:
    wire: bytes to a message, or what is wrong with it as a message
    requests: messages to the core's words
    responses: the core's words to messages
    statuses: exceptions to gRPC statuses and their details, the one table
    gate: who is inside, so that the server can go down without cutting anyone off
    receiving: how many calls wait for a request at once, and for how long
    stream: AnalyzeGroups, many groups in flight on one stream
    probing: whether a model computes what its bundle's export recorded
    servicer: the methods: read, call the core, write
"""
