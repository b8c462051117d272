"""The gateway over HTTP: an OpenAI-compatible interface to the same two services, and these.

    protocol, listener   uvicorn in this process, with limits on a request that is not whole yet
    boundary             what happens around every request: host, span, deadline, errors
    bodies, sse          a body read within limits; events written to whoever reads
    problems             errors in OpenAI's shape
    app                  the routes
    page                 the files of the page for people
    connect              the services themselves, by Connect and gRPC-Web
    openai/              requests to specs, events to chunks and typed events

A request goes down this list, and what answers it comes back up.
"""
