"""JSON files of one value."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(description="one JSON value, with `records` in it", is_nested=True, in_memory=True)
