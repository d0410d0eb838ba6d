"""Arrow IPC files and streams."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(
    description="IPC files or streams, such as `datasets` saves", format="an Arrow file", endings=(".arrow", ".feather")
)
