"""Parquet files."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(description="rows", format="a Parquet file", endings=(".parquet",))
