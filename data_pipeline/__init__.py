"""Documents to token sequences: sources, tokenizers, packing, lanes, loader and ledger. Never imports llmscale."""
