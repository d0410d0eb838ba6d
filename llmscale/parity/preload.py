"""What the parent of all ranks of a pool imports once, since importing it anew takes every rank seconds."""

import torch

from llmscale.engine import shims

torch.set_num_threads(1)
shims.import_deepspeed(torch.device("cpu"))

# torch.compile's machinery, which the first optimizer imports.
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)

import llmscale.train.start  # noqa: E402, F401
