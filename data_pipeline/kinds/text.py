"""Plain text."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(description="plain files", has_fields=False, is_text=True, is_plain=True)
