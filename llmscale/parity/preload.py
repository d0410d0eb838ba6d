"""What the parent of all ranks imports once, since importing it again in every rank takes seconds."""

import gc

import sentencepiece  # noqa: F401
import torch
import torch.fx.experimental.symbolic_shapes  # of the backward pass of a pipeline's stages

import llmscale.train.start  # noqa: F401
from llmscale.engine.deepspeed import shims

torch.set_num_threads(1)
shims.import_early(torch.device("cpu"))
# DeepSpeed collects garbage at each start of ZeRO 3, which would look through all of this.
gc.freeze()
