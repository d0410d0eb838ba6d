"""What the parent of all test ranks imports once: as for `llmscale parity`, and what whole runs import late."""

import gc

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch._dynamo  # noqa: F401

import llmscale.parity.preload
import llmscale.report.report  # noqa: F401

gc.freeze()
