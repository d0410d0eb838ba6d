"""What a run that starts from a checkpoint trains of it."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from data_pipeline.base.section import Section
from data_pipeline.config import SourceConfig
from llmscale.config.bounds import Count
from llmscale.config.lora import LoraConfig

Mode = Literal["all", "encoder", "head", "layers"]
Pattern = Annotated[str, Field(min_length=1)]
MODES: tuple[str, ...] = get_args(Mode)


class FinetuneConfig(Section):
    """Fine-tuning: which of the tensors of `train.init_from` are trained, and at what rates. All others are frozen:
    they keep their values to the bit, and take neither gradients nor optimizer state."""

    train: Mode | list[Pattern] = "all"
    """all: every tensor. encoder: the encoder's alone. head: the heads' alone. layers: the last `layers` layers, the
    final norm and the heads. Or a list of patterns over canonical names (a checkpoint's manifest.json lists them): `*`
    stands for anything, a module for all of its tensors, and the words encoder, decoder and head for those parts."""
    lora: LoraConfig | None = None
    """Low-rank factors beside linear layers, which are trained in place of them: `train` then says what is trained
    besides, and `all` stands for the head of a task."""
    layers: Count | None = Field(default=None, ge=1)
    """How many of the last layers `train: layers` trains; of an encoder-decoder those of its decoder."""
    redraw: list[Pattern] = []
    """What begins from values drawn by name and `run.seed` instead of the checkpoint's, by the words and patterns of
    `train`. It is trained in any case."""
    redraw_layers: Count = Field(default=0, ge=0)
    """How many of the last layers begin from drawn values (Zhang et al. 2021, section 5). They are trained in any
    case."""
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each layer to the one below it (Howard and Ruder 2018, section 3.2): heads have
    the schedule's rate, the last layer this factor of it, the embeddings the lowest."""
    embedding_lr_factor: float = Field(default=1.0, gt=0)
    """Factor of the learning rate of embeddings (tokens, positions, token types), besides `layer_lr_decay`."""

    features: bool = True
    """Where the head alone is trained, and reads one vector of each row: compute these once, and keep them in the run's
    `cache`. Losses are those of computing them at every step, but for rounding (1e-6)."""

    forgetting: Literal["pretraining"] | list[SourceConfig] = []
    """Held-out text of which bits per byte are measured before the first step and after the last one, by source: what
    was forgotten. pretraining: what the run of `train.init_from` holds out, where its files are still there."""

    @field_validator("train", mode="before")
    @classmethod
    def _known_mode(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in MODES:
            near = difflib.get_close_matches(value, MODES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(MODES)}"
            raise ValueError(f"{value!r} is no mode; {hint} (patterns over names are a list: [{value!r}])")
        if isinstance(value, list) and not value:
            raise ValueError("the list is empty, so that nothing would be trained; name what to train, or leave it out")
        return value

    @field_validator("forgetting", mode="before")
    @classmethod
    def _known_text(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "pretraining":
            raise ValueError(f"{value!r} is neither pretraining nor a list of sources; give [{{paths: [{value}]}}]")
        return value

    @model_validator(mode="after")
    def _layers_belong_to_their_mode(self) -> FinetuneConfig:
        if (self.train == "layers") != (self.layers is not None):
            given = "not given" if self.layers is None else f"{self.layers}"
            raise ValueError(
                f"finetune.layers is {given}, but finetune.train is {self.train}; give both finetune.train=layers and"
                f" finetune.layers, or neither"
            )
        return self
