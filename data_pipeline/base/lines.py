"""What a line of a file is."""


def file_lines(text: str) -> list[str]:
    """The lines of a text file without their ends: a newline, or a carriage return and a newline.

    Nothing else ends a line, unlike for `str.splitlines` and files that Python opens as text: the other separators that
    Unicode knows stand in prompts and are tokens of vocabularies. A last line needs no end.
    """
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
