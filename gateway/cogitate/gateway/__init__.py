"""The gateway: the mesh's front door.

`server` offers ContemplationService and GatewayService, `wire` translates, `core.validation` says
what a request may be, `runtime` holds the channels, `aggregators` relays streams and goes on at
another aggregator when one dies, `config` has every knob.
"""
