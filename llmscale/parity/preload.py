"""What the parent of all ranks imports once, since importing it anew takes every rank seconds."""

import gc

import torch

from llmscale.engine import shims

torch.set_num_threads(1)
shims.import_deepspeed(torch.device("cpu"))

# torch.compile's machinery, which the first optimizer imports, and so does a module that DeepSpeed's start-up reads.
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401

import llmscale.train.start  # noqa: E402, F401

# DeepSpeed collects garbage at each start of ZeRO 3, which would look through all of this.
gc.freeze()
