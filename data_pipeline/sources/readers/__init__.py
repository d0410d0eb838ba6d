"""Reading records of one span from any position, of every kind of file, with few files open.

A block is what a reader hands over at once: about 64 KiB of text. A reader is asked for the block at a position and
says where the next one starts, so whoever reads needs to remember nothing but that position.
"""

from data_pipeline.sources.readers.bad_records import BadCounts, BadRecord, BadRecords, by_reason
from data_pipeline.sources.readers.base import BLOCK_BYTES, ENDLESS, Block, Reader, RecentlyUsed, Record, Span
from data_pipeline.sources.readers.nothing import nothing_kept

__all__ = [
    "BLOCK_BYTES",
    "ENDLESS",
    "BadCounts",
    "BadRecord",
    "BadRecords",
    "Block",
    "Reader",
    "RecentlyUsed",
    "Record",
    "Span",
    "by_reason",
    "nothing_kept",
]
