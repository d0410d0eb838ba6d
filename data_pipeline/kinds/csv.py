"""Rows with commas between their fields (RFC 4180)."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(description="rows under a header row", is_text=True, delimiter=",", endings=(".csv",))
