"""Runs contemplations: gangs out, ballots in, one verdict.

Map of the package, in the order a contemplation meets it:

* ``server``         the gRPC servicer of ContemplationService
* ``runtime``        accepts contemplations, keeps their event logs, lets clients attach
* ``runner``         one contemplation's shell: performs the effects its state machine asks for
* ``core``           the pure state machine, ballots, quorums, answers
* ``lease_client``   the one stream to the router
* ``gang_client``    one Decode stream for each gang
* ``journal``        events on disk before they are sent
* ``wire``           messages to domain values and back
"""
