"""Transformers as a worker: `generate` with num_return_sequences, a batch of prompt copies."""

from __future__ import annotations

import time

from worker import Job, Timing, serve


class Transformers:
    """The library's own sampling loop."""

    def __init__(self, directory: str, dtype: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

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
        self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=job.temperature,
            top_k=0,
            num_return_sequences=job.agents,
            min_new_tokens=job.num_tokens,
            max_new_tokens=job.num_tokens,
            logits_processor=LogitsProcessorList([Clock()]),
            pad_token_id=0,
        )
        return Timing(time.perf_counter() - began, first[0] - began)


if __name__ == "__main__":
    serve(Transformers)
