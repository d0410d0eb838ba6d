"""Rows with tabs between their fields: read as those with commas."""

from data_pipeline.sources.readers.openers.csv import opened

__all__ = ["opened"]
