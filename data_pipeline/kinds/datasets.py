"""Data sets of the Hugging Face `datasets` library."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(description="anything that the Hugging Face `datasets` library can stream", is_streamed=True)
