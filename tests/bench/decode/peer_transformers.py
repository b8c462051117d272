"""Transformers as a worker: the prompt computed once, its cache repeated for every agent.

With the type `<dtype>+copies` instead what its users do: `num_return_sequences`, which computes
the prompt once for every agent.
"""

from __future__ import annotations

import time

from worker import Job, Timing, serve


class Transformers:
    """The library's own sampling loop."""

    def __init__(self, directory: str, dtype: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        dtype, _, self._copies = dtype.partition("+")
        torch.set_num_threads(threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))

    def run(self, job: Job) -> Timing:
        """Generates for all prompts in one batch, which is the best it can do."""
        from transformers import LogitsProcessor, LogitsProcessorList

        first: list[float] = []

        class Clock(LogitsProcessor):
            def __call__(self, input_ids, scores):  # type: ignore[no-untyped-def]
                first.append(time.perf_counter())
                return scores

        torch = self._torch
        torch.manual_seed(job.seed)
        prompts = torch.tensor(job.prompts)
        began = time.perf_counter()
        extra = {}
        if self._copies:
            extra["num_return_sequences"] = job.agents
        else:
            extra["past_key_values"] = self._shared(prompts, job.agents)
            prompts = prompts.repeat_interleave(job.agents, 0)
        made = self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=job.temperature,
            top_k=0,
            min_new_tokens=job.num_tokens,
            max_new_tokens=job.num_tokens,
            logits_processor=LogitsProcessorList([Clock()]),
            pad_token_id=0,
            **extra,
        )
        ended = time.perf_counter()
        assert tuple(made.shape) == (
            len(job.prompts) * job.agents,
            len(job.prompts[0]) + job.num_tokens,
        )
        return Timing(ended - began, first[0] - began)

    def _shared(self, prompts, agents):  # type: ignore[no-untyped-def]
        """The cache of all but the last token, which generate wants to compute itself."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        with self._torch.inference_mode():
            self._model(prompts[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(agents)
        return cache


if __name__ == "__main__":
    serve(Transformers)
