"""What `llmscale data` prints, a module for each sub-command."""
