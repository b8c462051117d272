"""Runs the tools that agents call, within limits, each call once.

Map: `core/registry.py` names the tools, `core/{calculator,prove,zoom}.py` are them;
`core/{arguments,policy,capacity,ledger,invoke,output}.py` are the rules every call goes through;
`runtime.py` owns threads, time and state; `server.py` and `wire.py` are the gRPC face; `config.py`
holds the knobs.
"""
