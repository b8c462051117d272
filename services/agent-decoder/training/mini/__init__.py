"""How the embedded model `mini` is made: pictures, traces, tokenizer, model, stages, export."""
