"""The router's decisions, without clock, network or log.

`types` the values · `estimate` how long and how dear · `placement` who runs where · `policies` the
ways to split a gang · `fleet` what endpoints report · `leases` who booked what · `desk` the three
put together.
"""
