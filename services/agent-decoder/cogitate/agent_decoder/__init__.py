"""Runs gangs: agents that share one prefill and decode in one batch.

Map of the package, in the order a request meets it:

* ``server``     the gRPC servicer: one Decode stream for each gang
* ``wire``       messages to domain values and back
* ``runtime``    one gang's commands in and events out; embeddings, spans
* ``engine``     the thread that steps the model: schedule, run, postprocess
* ``core``       pure parts: block pool, scheduler, sampling, parsing of calls and answers
* ``model``      torch: the Llama forward over a block-table KV cache, loading, templates
* ``reporter``   tells every router what this endpoint is and does
"""
