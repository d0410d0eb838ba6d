"""Rows with tabs between their fields."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(
    description="rows under a header row", is_text=True, delimiter="\t", endings=(".tsv",), defaults={"quote": ""}
)
