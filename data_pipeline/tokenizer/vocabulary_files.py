"""The files that GPT-2 and BERT vocabularies come in, read with a sentence for each thing that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from data_pipeline.base.durable import RepeatedKey, unique_keys
from data_pipeline.base.errors import UserError, first_line
from data_pipeline.base.lines import file_lines


def read_json(contents: bytes, name: str, fix: str) -> dict[str, Any]:
    """A JSON object; raises UserError for anything else, and for a key that occurs twice."""
    try:
        found = json.loads(_text(contents, name, fix), object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is not JSON ({error.msg} at line {error.lineno}); {fix}") from None
    except RepeatedKey as error:
        raise UserError(f"{name}: {error}; {fix}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{name} is not JSON ({first_line(error)}); {fix}") from None
    except RecursionError:
        raise UserError(f"{name} is JSON that is nested too deeply; {fix}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} holds a JSON {type(found).__name__} where an object is needed; {fix}")
    return found


def read_vocabulary(contents: bytes, name: str) -> dict[str, int]:
    """GPT-2's `vocab.json`: token ids by token."""
    fix = "give GPT-2's vocab.json, an object of token ids by token"
    found = read_json(contents, name, fix)
    tokens: dict[int, str] = {}
    for token, number in found.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise UserError(f"{name} has {number!r} for token {token!r}, which is no token id; {fix}")
        if number in tokens:
            raise UserError(f"{name} has token id {number} twice, for {tokens[number]!r} and {token!r}; {fix}")
        tokens[number] = token
    return found


def read_merges(contents: bytes, name: str, vocabulary: Collection[str]) -> list[tuple[str, str]]:
    """GPT-2's `merges.txt`: two tokens a line, the first merge first; every part and result is in the vocabulary."""
    fix = "give the merges.txt that belongs to the vocabulary"
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(_lines(contents, name, fix), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise UserError(f"line {number} of {name} is {line[:40]!r}, not two tokens; {fix}")
        for token in (*parts, "".join(parts)):
            if token not in vocabulary:
                raise UserError(f"line {number} of {name} has {token[:40]!r}, which is not in the vocabulary; {fix}")
        pairs.append((parts[0], parts[1]))
    return pairs


def read_wordpieces(contents: bytes, name: str) -> dict[str, int]:
    """BERT's `vocab.txt`: a token a line, numbered from 0; ERNIE's, with the number behind a tab, is read too."""
    fix = "give BERT's vocab.txt, with one token a line"
    lines = _lines(contents, name, fix)
    if all(line.endswith(f"\t{number}") for number, line in enumerate(lines)):
        lines = [line.rpartition("\t")[0] for line in lines]
    found: dict[str, int] = {}
    for number, token in enumerate(lines):
        if token in found:
            raise UserError(f"{name} has {token[:40]!r} twice, in lines {found[token] + 1} and {number + 1}; {fix}")
        found[token] = number
    if "[UNK]" not in found:
        raise UserError(f"{name} has no [UNK] among its {len(found)} tokens; {fix}")
    return found


def _text(contents: bytes, name: str, fix: str) -> str:
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text; {fix}") from None


def _lines(contents: bytes, name: str, fix: str) -> list[str]:
    return file_lines(_text(contents, name, fix))
