"""What the parent of all test ranks imports once."""

import torch

from llmscale.engine import shims

torch.set_num_threads(1)
shims.import_deepspeed(torch.device("cpu"))

# What a run imports late, which takes every rank seconds: torch.compile's machinery (by the first optimizer, and by a
# module that DeepSpeed's start-up reads), and matplotlib.
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401
import matplotlib.backends.backend_agg  # noqa: E402
import matplotlib.figure  # noqa: E402, F401

import llmscale.report.report  # noqa: E402
import llmscale.train.start  # noqa: E402, F401
