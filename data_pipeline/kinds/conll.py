"""CoNLL's columns of words and tags."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(
    description="a word a line with its tags in columns and an empty line behind each sentence; the fields are tokens"
    " (the first column), tags (the last one), and each column's number from 0",
    is_text=True,
    in_memory=True,
    join=" ",
)
