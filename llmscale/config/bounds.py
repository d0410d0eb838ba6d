"""Upper bounds of the config's integers, so that what no machine can count to is refused where it is read."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(lt=2**31)]
"""What kernels and libraries count in 32 bits: sizes, ranks, steps."""
BigCount = Annotated[int, Field(lt=2**63)]
"""Samples and elements of a whole run, and seeds: 64 bits."""
Width = Annotated[int, Field(le=2**20)]
"""Channels, heads and experts, so that the bytes of a tensor of three such dimensions are a number of 64 bits."""
Layers = Annotated[int, Field(le=10_000)]
"""Layers of a stack, each of which has parts of its own: ten times as many as any published model has (DeepNet)."""
