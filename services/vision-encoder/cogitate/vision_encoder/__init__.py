"""Keeps images by content and turns views of them into embeddings, each once.

Map: `core/` decides (what may be decoded, where a box lies, what stays in memory, what makes a
batch); `runtime.py` owns state and tasks, `blobs.py` the stored images, `flights.py` the work that
several callers share, `batcher.py` the queue in front of `encoder.py`, which is the device;
`server.py` and `wire.py` are the gRPC face; `config.py` holds the knobs.
"""
