"""The router: where gangs run. Beside the data path; tokens never pass through it.

`__main__` starts it · `config` its knobs · `server` the RPCs · `wire` protos to values and back ·
`runtime` streams, clock and spans around `core`, which decides · `reports`, `holders` who reports
and who asks · `discovery` endpoints it dials · `picking` what Envoy asks · `scaling` what KEDA asks
"""
