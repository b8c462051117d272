"""Runs contemplations: gangs out, ballots in, one verdict.

Map of the package, in the order a contemplation meets it:

* ``server``         the gRPC servicer of ContemplationService
* ``admission``      what a request must be to be accepted
* ``runtime``        accepts contemplations, keeps their event logs, lets clients attach
* ``runner``         one contemplation's shell: performs the effects its state machine asks for
* ``core``           the pure state machine, places, budget, ballots, quorums, answers
* ``lease_client``   the one stream to the router
* ``gang_client``    one Decode stream for each gang
* ``tool_client``    tool calls, whose failures are results too
* ``endings``        verdict and certificate, failure, cancellation
* ``course``         the state machine with its numbered events, live and in replay
* ``recording``      inputs as the journal keeps them, and back
* ``event_log``      numbered events, readable from any number, and their way into the journal
* ``coalesce``       fewer, longer events for a reader that fell behind
* ``journal``        what a journal promises; ``sqlite_journal`` and ``nats_journal`` keep it
* ``ownership``      the claim of what aggregators that died left
* ``wire``           messages to domain values and back
"""
