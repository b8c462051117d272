"""vLLM on the CPU as a worker: one request with n samples a prompt, prefix shared in its cache."""

from __future__ import annotations

import os
import time

from worker import Job, Timing, serve

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# The engine in this process, so that steps can be counted from here.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


class Vllm:
    """vLLM's own engine, stepped by hand to see the first token."""

    def __init__(self, directory: str, dtype: str, threads: int) -> None:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
        from vllm import LLM

        self._llm = LLM(
            model=directory,
            dtype="bfloat16" if dtype == "w8a8" else dtype,  # of what is not quantised
            skip_tokenizer_init=True,  # prompts are token ids
            max_model_len=8192,
            max_num_seqs=256,
            max_num_batched_tokens=2048,  # as its server has; it tries a step of so many at start
            enable_prefix_caching=True,
            disable_log_stats=True,
        )
        self._num_requests = 0

    def run(self, job: Job) -> Timing:
        """Adds all requests, then steps to the end."""
        from vllm import SamplingParams, TokensPrompt

        engine = self._llm.llm_engine
        self._llm.reset_prefix_cache()
        params = SamplingParams(
            n=job.agents,
            temperature=job.temperature,
            max_tokens=job.num_tokens,
            ignore_eos=True,
            seed=None,
            detokenize=False,
        )
        began = time.perf_counter()
        waiting = set()
        for prompt in job.prompts:
            self._num_requests += 1
            request_id = str(self._num_requests)
            waiting.add(request_id)
            engine.add_request(request_id, TokensPrompt(prompt_token_ids=prompt), params)
        first_token_s = 0.0
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.request_id in waiting and any(c.token_ids for c in output.outputs):
                    waiting.discard(output.request_id)
                    first_token_s = time.perf_counter() - began
        return Timing(time.perf_counter() - began, first_token_s)


if __name__ == "__main__":
    serve(Vllm)
