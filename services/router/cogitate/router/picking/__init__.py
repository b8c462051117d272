"""The router as Envoy's endpoint picker: each HTTP request is told where to go.

`asking` what headers say · `picker` asks the desk as a lease holder does · `replies` what Envoy is
told · `ext_proc` the RPC. A pick is the placement of a gang that is not split.
"""
