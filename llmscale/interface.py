"""What `import llmscale` offers: trained models and runs, as objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import read_records
from data_pipeline.base.terminal import warn
from data_pipeline.ledger import SeenPiece, replay
from data_pipeline.loader import TrainLoader
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.frame import text_frame
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.config import RunConfig, load_config
from llmscale.embeddings import Embedder, Settings
from llmscale.generate import Completion, Generator, Piece, reading_of
from llmscale.generate.defaults import settings_of
from llmscale.model import Transformer
from llmscale.train.check import require_runnable
from llmscale.train.run_directory import RunDirectory
from llmscale.train.signals import PreemptionFlag
from llmscale.train.start import train


@dataclass(frozen=True)
class Score:
    """How probable a text is to a decoder."""

    tokens: list[int]
    log_probabilities: list[float]
    """Of each token after those before it, in nats."""

    @property
    def total(self) -> float:
        """Log-probability of the text, in nats."""
        return sum(self.log_probabilities)


class Model:
    """A trained model with its tokenizer: of a checkpoint, or the newest intact one of a run."""

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        """
        Args:
            path: a checkpoint or a run directory.
            device: where torch is to have the weights, in fp32.

        Raises:
            UserError: there is no intact checkpoint.
        """
        self.trained: TrainedModel = load_model(path, device)

    @property
    def module(self) -> Transformer:
        """The model itself, a torch module in evaluation mode."""
        return self.trained.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        return self.trained.tokenizer

    @property
    def config(self) -> RunConfig:
        """That of the run."""
        return self.trained.config

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self.module, self.tokenizer, reading_of(self.config.objective))

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[Completion]:
        """What follows each prompt.

        Args:
            settings: fields of `llmscale.generate.Settings`, such as max_new_tokens, temperature, top_p, beams, stop
                and seed; the model's own defaults, else those of `llmscale generate`, hold where there are none.

        Raises:
            UserError: an encoder, a prompt that is too long, or a setting out of range.
        """
        return self._generator.generate(prompts, settings_of(settings, self.tokenizer))

    def stream(self, prompts: Sequence[str], **settings: Any) -> Iterator[Piece]:
        """As `generate`, in pieces as they are made."""
        return self._generator.stream(prompts, settings_of(settings, self.tokenizer))

    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: str | None = None,
        layers: Sequence[int] = (-1,),
        normalize: bool | None = None,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Vectors of texts, (N, hidden_size) float32; texts that are longer than the context are cut.

        Args:
            pooling: first, last or mean over the tokens; None: as the model was trained, else mean.
            layers: whose hidden states, of several their mean; 0 is the embedding, -1 the last layer.
            normalize: vectors of length 1; None: as the model was trained, and of a language model yes.
            batch_size: texts of a forward pass; no vector depends on it.

        Raises:
            UserError: a pooling or a layer that the model does not have.
        """
        settings = Settings(pooling, tuple(layers), normalize)
        return Embedder(self.module, self.tokenizer, settings).embed(texts, batch_size)

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[Score]:
        """The log-probability of every token of each text, at the beginning of a document.

        Raises:
            UserError: the model is no decoder, or a text has more tokens than it has positions.
        """
        model = self.module
        if model.config.architecture != "decoder":
            raise UserError(
                f"model.architecture is {model.config.architecture}, but only a decoder scores a text token by token;"
                f" give a checkpoint of a decoder"
            )
        device = next(model.parameters()).device
        begin, _ = text_frame(self.tokenizer, source=False)
        # Without a token of its own in front, the first one has none to be predicted from.
        begin = begin or [self.tokenizer.special["eos"]]
        scores = []
        for text in texts:
            tokens = self.tokenizer.encode(text)
            read = [*begin, *tokens][:-1]
            if len(read) > model.config.max_positions:
                raise UserError(
                    f"the text {text[:40]!r} has {len(read)} tokens to read, but model.max_positions is"
                    f" {model.config.max_positions}; score it in parts"
                )
            found: list[float] = []
            if tokens:
                logits = model.head(model(torch.tensor([read], device=device)).hidden[:, len(begin) - 1 :])
                rows = logits[0].float().log_softmax(-1)
                found = rows.gather(1, torch.tensor(tokens, device=device)[:, None])[:, 0].tolist()
            scores.append(Score(tokens, found))
        return scores


class Run:
    """A training run: a config, and the run directory that it names."""

    def __init__(self, config: str | Path, *overrides: str) -> None:
        """
        Args:
            config: a YAML file, or the config.yaml in a run directory.
            overrides: `dotted.key=value`.

        Raises:
            UserError: the config is wrong, or cannot run in this process.
        """
        self.config: RunConfig = require_runnable(load_config(Path(config), overrides, warn))
        self.directory = RunDirectory(self.config.run.directory)

    def train(self, from_scratch: bool = False) -> dict[str, Any]:
        """Train in this process until the run is done, as `llmscale train` does; it continues what has begun.

        Must be called from the main thread, since it listens to signals.

        Returns:
            What outcome.json says: `outcome` is done, or preempted.

        Raises:
            UserError, CheckpointError, DivergedError: as the command says them.
        """
        with PreemptionFlag() as flag:
            train(self.config, flag, from_scratch)
        return self.directory.outcome()

    @property
    def model(self) -> Model:
        """The model of the newest intact checkpoint."""
        return Model(self.directory.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl: figures of steps, and evaluations."""
        return read_records(self.directory.metrics)

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Rows of ledger.jsonl: the samples of each step, and the sum by which they are checked."""
        return [row for row in read_records(self.directory.ledger) if row["step"]]

    def seen(self, step: int) -> list[SeenPiece]:
        """What a step was trained on, read again and checked against the ledger.

        Raises:
            UserError: there is no such step, or the data have changed.
        """
        return list(
            replay(
                self.directory.path,
                self.config.data,
                self.tokenizer,
                objective=self.config.objective,
                seed=self.config.run.seed,
                step=step,
                cache=self.directory.cache,
                epochs=self.config.train.epochs,
            )
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's own, which is made now where the run has none yet."""
        roles = self.config.objective.roles(self.config.data.sequence_length)
        begins_from = self.config.train.init_from
        return prepare_tokenizer(self.config.data, self.directory.tokenizer, roles=roles, begins_from=begins_from)

    def loader(self, rank: int = 0, ranks: int = 1) -> TrainLoader:
        """The run's batches from its first sample on, as data-parallel rank `rank` of `ranks` gets them:
        `loader.take(samples)` gives the next. It is a context manager, which closes files and workers.

        Raises:
            UserError: the data cannot be used.
        """
        return TrainLoader(
            self.config.data,
            self.tokenizer,
            objective=self.config.objective,
            seed=self.config.run.seed,
            dp_rank=rank,
            dp_size=ranks,
            cache=self.directory.cache,
            epochs=self.config.train.epochs,
        )
