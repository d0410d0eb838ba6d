"""`llmscale data prepare`: a corpus tokenised once, in parallel, and rid of duplicates."""
