"""The engine `vllm`: gangs on vLLM's AsyncLLM in this process, token ids in and out.

For models that outgrow one machine: tensor and pipeline parallelism, several nodes by Ray, are
vLLM's own and asked for by ``vllm_arguments``. vLLM is none of our dependencies: it pins a torch of
its own, so this runs where vLLM is installed.

* ``arguments``  what vLLM is started with
* ``draws``      our counter-based draws inside vLLM's sampler
* ``source``     one agent's request as a stream of tokens
* ``grammars``   grammars that vLLM follows, and not the core
* ``load``       vLLM's own metrics as the load report
* ``build``      puts these together
"""
