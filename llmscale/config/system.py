"""Where and how the run executes: nothing here changes what is learned, except the seed."""

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.base.section import Section
from llmscale.config.bounds import BigCount, Count


class RunSection(Section):
    """The run itself."""

    directory: str
    """Where the run keeps its config, metrics, ledger and checkpoints; relative to the working directory. Under Slurm
    {job} stands for the number of the job, or of the job array, and {array_task} for that of the array's element."""
    seed: BigCount = Field(default=0, ge=0)
    """Decides initial weights and data order."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads of each rank. When not given: OMP_NUM_THREADS, else the cores that the process may use divided by
    the ranks of this machine. Recorded, since the last bits of a loss depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA when there is a GPU."""

    @field_validator("directory")
    @classmethod
    def _knows_its_placeholders(cls, directory: str) -> str:
        unknown = [name for name in re.findall(r"\{(\w*)\}", directory) if name not in ("job", "array_task")]
        if unknown:
            raise ValueError(
                f"run.directory is '{directory}', but {{{unknown[0]}}} is not known; {{job}} and {{array_task}} are"
            )
        return directory


class ParallelConfig(Section):
    """How the run is laid out: ranks = pipeline x data x context x tensor. Nothing here changes what is learned."""

    renamed: ClassVar[dict[str, str]] = {"tensor_sequence": "sequence_parallel", "sequence": "context"}

    data: Count | None = Field(default=None, ge=1)
    """Data-parallel size; what the other sizes leave of the ranks when not given."""
    tensor: Count = Field(default=1, ge=1)
    """Tensor-parallel size: ranks that share each layer's matrices by heads and channels (Shoeybi et al. 2019)."""
    sequence_parallel: bool = False
    """Let the tensor-parallel ranks share the residual stream by positions too (Korthikanti et al. 2022, section
    4.2.2): less memory for activations, the same traffic."""
    context: Count = Field(default=1, ge=1)
    """Context-parallel size: ranks that share each sequence by positions, and attention by heads (DeepSpeed-Ulysses,
    Jacobs et al. 2023)."""
    pipeline: Count = Field(default=1, ge=1)
    """Pipeline-parallel size: ranks that share the layers, stage after stage."""
    expert: Count = Field(default=1, ge=1)
    """Expert-parallel size: data-parallel ranks that share the experts of each layer; divides `data`."""


class EngineConfig(Section):
    """DeepSpeed and numerics."""

    renamed: ClassVar[dict[str, str]] = {
        "recompute": "activation_checkpointing",
        "persistence_elements": "param_persistence_threshold",
        "live_elements": "max_live_parameters",
    }

    zero_stage: Literal[1, 2, 3] = 1
    """What DeepSpeed ZeRO shards over the data-parallel ranks: 1 optimizer states, 2 gradients too, 3 weights too."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass; masters, moments and sums of gradients stay fp32. auto: bf16 on
    CUDA, fp32 on CPU. fp16: the loss is scaled, and steps whose gradient overflows are skipped and counted."""
    initial_scale_power: int = Field(default=16, ge=0, le=32)
    """fp16: the loss is multiplied by 2 to the power of this at the start; the factor then follows the gradients."""
    offload: Literal["none", "optimizer", "optimizer_and_weights"] = "none"
    """What is kept in the CPU's memory, where the update is then computed: the masters and the optimizer's state, at
    zero_stage 3 the weights too, which travel to the GPU when they are used."""
    param_persistence_threshold: BigCount = Field(default=100_000, ge=0)
    """zero_stage 3: tensors of at most so many elements are kept whole on every rank between their uses."""
    max_live_parameters: BigCount = Field(default=1_000_000_000, ge=0)
    """zero_stage 3: elements of weights that a rank may hold gathered at a time, also for their next use; fewer take
    less memory and more communication."""
    bucket_elements: Count = Field(default=50_000_000, ge=1)
    """Gradient elements per communication bucket."""
    compile: bool = False
    """torch.compile each layer: slower to start, faster to run. At zero_stage 3 all weights of a layer are then brought
    together at once."""
    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    """What the forward pass does not keep for the backward pass, which computes it again: less memory for more time.
    block: everything inside each layer; selective: all but the results of matrix products with weights and of fused
    attention."""
    dropout_layout_free: bool = True
    """Whether attention probabilities are dropped by a hash of sample and place, like everything else: the same on
    any layout, but without the fused attention kernel. false: the kernel draws; losses then depend on the layout."""

    @model_validator(mode="after")
    def _offloads_what_it_shares(self) -> "EngineConfig":
        if self.offload == "optimizer_and_weights" and self.zero_stage != 3:
            raise ValueError(
                f"offload is optimizer_and_weights, but zero_stage is {self.zero_stage}, which keeps whole weights on"
                f" the GPU; set engine.zero_stage=3 or engine.offload=optimizer"
            )
        return self


HELD_OUT = "held-out"
"""What the task of `evaluation.generate` is called."""
ANSWER_TOKENS = 128
"""Longest answer to a dialogue where it does not say."""


class GenerateConfig(Section):
    """A task that the run makes of what it holds out. Of pairs (objective seq2seq) the model writes a text of each
    source, which is measured beside the target; of dialogues (objective chat) the assistant's last turn. Its figures
    are `held-out/METRIC`."""

    metrics: list[str] = Field(min_length=1)
    """Such as bleu, chrf, rougeL, exact_match or f1, with options as in `rougeL:language=zh`; the main one first."""
    examples: Count | None = Field(default=200, ge=1)
    """Most pairs or dialogues, the same at every evaluation; None: all. A smaller number takes some of those of a
    larger one."""
    max_new_tokens: Count | None = Field(default=None, ge=1)
    """Tokens after which a text ends at the latest; None: objective.target_length, or 128 of an answer to a dialogue,
    which is left out where its prompt leaves no room for so many in the model's context."""


class EvaluationConfig(Section):
    """When and how the held-out loss is measured."""

    interval: Count | None = Field(default=None, ge=0)
    """Steps between evaluations; 0: only at the end. Where not given, what is held out is looked at so often that it
    takes a small share of the steps' time, by counting samples and not by a clock; tasks, and runs with `finetune`, are
    evaluated at the end."""
    batch: Count = Field(default=8, ge=1)
    """Samples of one forward pass of one rank."""
    max_samples: Count | None = Field(default=None, ge=1)
    """Most samples of an evaluation during training, an even sample; the final one uses all."""
    baselines: bool = False
    """At the end, compare with xz and with a unigram model of the training tokens."""
    tasks: list[str] = []
    """Tasks or suites that are evaluated besides, by name or file (`llmscale eval --list`)."""
    task_data: list[str] = []
    """Where their data are, as `TASK=PATH`; what is not named is read from where the task's file says."""
    task_limit: Count | None = Field(default=200, ge=1)
    """Most items of a task during training; the final evaluation uses all."""
    task_overflow: Literal["truncate-left", "window"] | None = None
    """What becomes of items longer than the model's context in tasks that would refuse them; None: they are refused."""
    generate: GenerateConfig | None = None
    """What the model writes of held-out sources, by metrics of generated text; None: nothing."""
    best: str | None = None
    """The figure whose best checkpoint is kept: `loss` (held-out), or `TASK/METRIC`."""
    patience: Count | None = Field(default=None, ge=1)
    """Evaluations in a row without a better `best` after which the run ends."""

    @model_validator(mode="after")
    def _figures_that_are_measured(self) -> "EvaluationConfig":
        if self.patience is not None and self.best is None:
            raise ValueError(f"patience is {self.patience}, but best names no figure; set best, such as best: loss")
        if self.best is not None and not self.interval:
            interval = "not given" if self.interval is None else self.interval
            raise ValueError(
                f"best is {self.best!r}, but interval is {interval}, so that nothing is compared; set interval"
            )
        return self


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept. The last step always is written."""

    interval: Count = Field(default=1000, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep: Count = Field(default=3, ge=1)
    """Newest checkpoints to keep."""
    keep_every: Count = Field(default=0, ge=0)
    """Keep besides them each checkpoint whose step is a multiple of this; 0: none."""


class LoggingConfig(Section):
    """What the run reports."""

    interval: Count = Field(default=10, ge=1)
    """Steps between rows of metrics.jsonl."""
    peak_flops: float | None = Field(default=None, gt=0, le=1e20)
    """Peak of a device in floating-point operations per second, of which MFU is the share that the model needs. When
    not given: that of the GPU's data sheet in the run's dtype; none on a CPU or an unknown GPU, where MFU is null."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Experiment trackers to feed; each must be installed. None changes what is trained."""
    ledger_snapshot_interval: Count = Field(default=100, ge=1)
    """Steps between cursor snapshots beside the ledger: the most that `llmscale data ledger` has to replay."""
    profile_start: Count = Field(default=0, ge=0)
    """First step that torch.profiler records on rank 0, into `profile/` of the run; 0: none. The first steps of a start
    are slower than the others."""
    profile_steps: Count = Field(default=3, ge=1)
    """Steps that it records."""
    sample_prompts: list[str] = []
    """Prompts that the trained model continues at the end, printed with the result."""
