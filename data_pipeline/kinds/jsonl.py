"""JSON lines."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(description="one JSON object a line", is_text=True, endings=(".jsonl", ".json", ".ndjson"))
