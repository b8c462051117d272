"""The native CPU step: C++ in `src`, built on first use (`library`), run by `runner`.

``python -m cogitate.agent_decoder.model.native`` builds it ahead of the first use.
"""
