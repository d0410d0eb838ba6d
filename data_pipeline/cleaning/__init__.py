"""Opt-in cleaning of documents and deduplication. Importing it loads no more than pydantic."""
