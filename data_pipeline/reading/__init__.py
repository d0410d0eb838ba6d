"""Text to token ids and byte spans, made once for training, scoring, generation and chat."""
