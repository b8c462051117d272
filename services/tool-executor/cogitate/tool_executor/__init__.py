"""Runs the tools that agents call, within limits, each call once.

Map: `core/registry.py` names the built-in tools, `core/{calculator,prove,zoom}.py` are them;
`core/{arguments,policy,capacity,ledger,invoke,output}.py` are the rules every call goes through;
`runtime.py` owns time and state. What runs a tool is a runner: `runners.py` for the built-in ones,
`sandboxes.py` with `core/{python,sandbox,seccomp}.py` for programs, `mcp_servers.py` and
`mcp_transports.py` with `core/mcp.py` for MCP servers. `server.py` and `wire.py` are the gRPC face;
`config.py` holds the knobs.
"""
