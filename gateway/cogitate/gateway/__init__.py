"""The gateway: the mesh's front door.

`server` offers ContemplationService and GatewayService, `wire` translates, `core.validation` says
what a request may be, `runtime` holds the channels and relays streams, `config` has every knob.
"""
