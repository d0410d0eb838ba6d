"""Building what a run needs, each part once: on rank 0 where files are written, then on every rank."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from typing import Any, TypeVar

import torch

from data_pipeline.base.errors import FULL, UserError
from data_pipeline.base.terminal import tell, warn
from data_pipeline.finite.heldout import EvaluationSet, build_evaluation_set, open_evaluation_set
from data_pipeline.finite.samples import IndexedSamples
from data_pipeline.finite.splits import require_labels_in_training
from data_pipeline.loader import TrainLoader
from data_pipeline.open_samples import is_small, open_samples
from data_pipeline.reading.dialogue import keep_turn_end
from data_pipeline.samples import ReadReport
from data_pipeline.sources.corpus import survey_sources
from data_pipeline.sources.readers import by_reason
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.chat_files import provide_chat
from data_pipeline.tokenizer.frame import conventions_of, text_frame
from data_pipeline.tokenizer.inherited import appended_roles, inherited
from llmscale.checkpoint.store import Retention, clean
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.config import RunConfig
from llmscale.config.system import HELD_OUT
from llmscale.config.training import require_schedule_fits
from llmscale.distributed.agreement import on_rank_zero, together
from llmscale.distributed.process_group import World
from llmscale.evaluate.held_out import held_out_task
from llmscale.evaluate.tasks import Task, load_tasks
from llmscale.finetune.redraw import redrawn
from llmscale.finetune.trained import names_of, training_of
from llmscale.generate.prompts import needs_source, reading_of, require_unicode
from llmscale.model import Transformer
from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.init import Weights
from llmscale.train.inherited import inherit_templates
from llmscale.train.initial import require_labels, start_from
from llmscale.train.memory import require_memory
from llmscale.train.repair import repair_tokenizer
from llmscale.train.resume import Resume
from llmscale.train.run_directory import RunDirectory
from llmscale.train.time_account import TimeAccount, begin_record

Value = TypeVar("Value")

SHARED_SECONDS = 20.0
"""How long a file of the run directory may take to be seen from every machine."""
_SHARED = ".shared-"


def set_threads(config: RunConfig, world: World) -> int:
    """Pin the CPU threads of this rank: the last bits of a loss depend on their number."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    elif "OMP_NUM_THREADS" not in os.environ:  # which torch obeys by itself
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    return torch.get_num_threads()


def build_grid(config: RunConfig, world: World) -> RankGrid:
    """The layout of `parallel` over all ranks, with process groups; collective."""
    return RankGrid.of(config.parallel, world.size, world.rank).with_groups()


def open_run(
    config: RunConfig,
    run: RunDirectory,
    stack: contextlib.ExitStack,
    account: TimeAccount,
    world: World,
    from_scratch: bool = False,
) -> int | None:
    """Claim the run directory for rank 0 until `stack` closes.

    Args:
        account: of this attempt's time, which begins a record in the run directory.
        from_scratch: whether a run that has lost its checkpoints may begin at step 0.

    Returns:
        The attempt's number on every rank; None when all steps are done already.
    """

    def claim() -> int | None:
        repaired = run.require_same_run(config)
        if run.is_finished(config):
            return None
        run.saved = run.known_saved(config)
        if not run.candidates() and not from_scratch:
            run.require_checkpoint([])
        stack.enter_context(run.locked())
        before = run.last_sign_of_life()
        if from_scratch and run.saved and not run.checkpoints.is_dir():
            # A file, or a link to what is not mounted, say, where the folder is to be made.
            repaired.append(f"what there was of {run.path} is now in {run.set_aside()}")
        run.create(config)
        for sentence in repaired:
            warn(sentence)
        return _begin(run, account, before, world)

    def claim_or_explain() -> int | None:
        try:
            return claim()
        except OSError as error:
            if error.errno in FULL:
                raise
            raise UserError(
                f"run.directory {run.path} cannot be used: {error.strerror} ({error.filename}); name a folder that you"
                f" may write"
            ) from None

    return on_rank_zero(claim_or_explain)


def begin_again(run: RunDirectory, account: TimeAccount, world: World) -> int:
    """The number, on every rank, of the attempt that follows on another within the same processes."""
    return on_rank_zero(lambda: _begin(run, account, run.last_sign_of_life(), world))


def _begin(run: RunDirectory, account: TimeAccount, before: float | None, world: World) -> int:
    attempt = run.begin_attempt()
    begin_record(run, attempt, account, before, world.size)
    return attempt


def require_shared(run: RunDirectory, world: World, seconds: float = SHARED_SECONDS) -> None:
    """See to it that all ranks mean the same folder by the run's path: all read there what rank 0 has written.

    Args:
        seconds: how long a file may take to be seen from another machine.

    Raises:
        UserError: on every rank: which rank does not see it, and both nodes.
    """
    if world.size == 1:
        return
    node = socket.gethostname()

    def write() -> tuple[str, str]:
        for old in run.path.glob(f"{_SHARED}*"):
            old.unlink(missing_ok=True)
        # A name that no machine has ever asked for: that it is missing is remembered for a while, on NFS.
        path = run.path / f"{_SHARED}{secrets.token_hex(8)}"
        path.touch()
        return path.name, node

    name, lead = on_rank_zero(write)
    path = run.path / name

    def read() -> None:
        end = time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > end:
                raise UserError(
                    f"run.directory {run.path} is not shared: rank 0 on {lead} has written {name} there, which on"
                    f" {node} is not to be seen after {seconds:g} s; name a folder on a file system of all nodes, and"
                    f" start all ranks in the same working directory"
                )
            time.sleep(0.05)

    try:
        together(read)
    finally:
        if world.rank == 0:
            path.unlink(missing_ok=True)


def build_tokenizer(config: RunConfig, run: RunDirectory) -> Tokenizer:
    """The run's own tokenizer: copied or trained by rank 0, loaded by all."""
    roles = config.objective.roles(config.data.sequence_length)
    roles = tuple(dict.fromkeys((*roles, *appended_roles(config.train.init_from))))

    def prepare() -> None:
        said = repair_tokenizer(run, config)
        if said:
            warn(said)
        prepare_tokenizer(config.data, run.tokenizer, tell, roles, config.train.init_from)
        inherit_templates(config, run)
        chosen = config.data.tokenizer.chat_template
        if config.objective.reads_dialogues or chosen is not None:
            said = provide_chat(run.tokenizer, chosen, config.data.tokenizer.path)
            if said:
                tell(said)
        if config.objective.reads_dialogues:
            keep_turn_end(load_tokenizer(run.tokenizer), run.tokenizer)

    on_rank_zero(prepare)
    tokenizer = together(lambda: load_tokenizer(run.tokenizer))
    wanted = config.model.vocab_size
    if wanted is not None and wanted < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size is {wanted}, but the tokenizer has {tokenizer.vocab_size} tokens;"
            f" set model.vocab_size={tokenizer.vocab_size} or more, or leave it out"
        )
    for index, prompt in enumerate(config.logging.sample_prompts):
        require_unicode(prompt, f"logging.sample_prompts.{index}")
        length, around = len(tokenizer.encode(prompt)), sum(map(len, text_frame(tokenizer, source=False)))
        needed, room = length + max(around, 1) + 1, config.model.max_positions
        if not length and needs_source(config.model, reading_of(config.objective)):
            raise UserError(
                f"logging.sample_prompts.{index} is empty, but a model trained by objective {config.objective.name}"
                " continues a source text; give one"
            )
        if needed > room:
            raise UserError(
                f"logging.sample_prompts.{index} needs {needed} positions with a token before and one after it, but"
                f" model.max_positions is {room}; shorten the prompt"
            )
    return tokenizer


def build_model(
    config: RunConfig, tokenizer: Tokenizer, grid: RankGrid, world: World, continues: bool = False, writes: bool = False
) -> tuple[Transformer, Weights]:
    """This rank's part of the model, of which there are shapes only, and where its weights come from: drawn by name, or
    read from the checkpoint that `train.init_from` names. A run that `continues` gets them with the rest of its state.

    Args:
        writes: whether texts are written during training, for which each rank has the whole model for a while.

    Raises:
        UserError: the ranks of this machine do not fit its memory, or as `start_from`.
    """
    together(lambda: require_memory(config, tokenizer.vocab_size, grid, world, writes=writes))
    vocab_size = config.model.vocabulary(tokenizer.vocab_size)
    model = init.build_hollow(config.model, vocab_size, grid, config.parallel.sequence_parallel)
    if continues:
        return model, init.blank
    if config.train.init_from is not None:
        if inherited(config.train.init_from, tokenizer) != conventions_of(tokenizer):
            raise UserError(
                f"{config.run.directory}/tokenizer was made without the conventions (special tokens around texts) of"
                f" train.init_from {config.train.init_from}; remove that folder, or start a new run"
            )
        start = start_from(model, config.train.init_from, tokenizer, config.run.seed)
        training = training_of(config.model, config.finetune, names_of(config.model))
        require_labels(config, training.redrawn)
        return model, redrawn(start, training, init.drawn(config.model, config.run.seed))
    return model, init.drawn(config.model, config.run.seed)


def build_evaluation(config: RunConfig, run: RunDirectory, tokenizer: Tokenizer) -> EvaluationSet | None:
    """The held-out documents as an indexed set, written once by rank 0; None where the config holds nothing out."""
    if not config.data.holdout and not config.data.evaluation:
        return None

    how: dict[str, Any] = {"objective": config.objective, "seed": config.run.seed}

    def write() -> str:
        written = build_evaluation_set(config.data, tokenizer, run.cache, **how)
        if written.remade:
            warn(f"{written.directory} was damaged and has been made again")
        if written.dropped:
            tell(f"reading the documents to evaluate on dropped or repaired: {by_reason(written.dropped)}")
        for warning in written.met.warnings(config.data.bad_record_warning):
            tell(warning)
        return written.directory.name

    name = on_rank_zero(write)
    return together(lambda: open_evaluation_set(run.cache / name, config.data, tokenizer, **how))


def build_tasks(config: RunConfig, run: RunDirectory, tokenizer: Tokenizer) -> list[Task]:
    """The tasks that are evaluated during training, that of the run's own held-out pairs among them; collective.

    Raises:
        UserError: there is no such task, or as `held_out_task`.
    """
    settings = config.evaluation
    tasks = load_tasks(settings.tasks, settings.task_data).tasks if settings.tasks else []
    if settings.generate is not None:
        if any(task.name == HELD_OUT for task in tasks):
            raise UserError(
                f"a task of evaluation.tasks is called {HELD_OUT}, as that of evaluation.generate is; give it another"
                f" name"
            )
        tasks.append(held_out_task(config, settings.generate, tokenizer, run.cache))
    figures = task_figures(tasks)
    if settings.best is not None and "/" in settings.best and settings.best not in figures:
        raise UserError(
            f"evaluation.best is {settings.best!r}, but what is evaluated is {', '.join(['loss', *figures])}; name"
            f" one of them"
        )
    return tasks


def task_figures(tasks: list[Task]) -> list[str]:
    """What is measured of tasks, as `task/metric`."""
    return [f"{task.name}/{metric}" for task in tasks for metric in task.metrics]


def build_loader(
    config: RunConfig,
    run: RunDirectory,
    tokenizer: Tokenizer,
    grid: RankGrid,
    resume: Resume,
    device: torch.device,
) -> TrainLoader:
    """This rank's share of the training samples, from where the run continues on.

    Rank 0 looks at the files for all, and opens first what is or may be read as a finite set: the others find it there.
    """
    tokenised = any(source.about.is_tokenised for source in config.data.sources)
    surveys = None if tokenised else on_rank_zero(lambda: survey_sources(config.data))
    met: list[ReadReport] = []
    if config.data.finite or (surveys is not None and is_small(surveys)):
        on_rank_zero(
            lambda: (
                open_samples(
                    config.data,
                    tokenizer,
                    config.objective,
                    seed=config.run.seed,
                    cache=run.cache,
                    progress=tell,
                    surveys=surveys,
                    met=met.append,
                )
                and None
            )
        )
    loader = together(
        lambda: TrainLoader(
            config.data,
            tokenizer,
            objective=config.objective,
            seed=config.run.seed,
            dp_rank=grid.coordinate("data"),
            dp_size=grid.data,
            first_sample=resume.samples,
            cursor=resume.cursor,
            cache=run.cache,
            epochs=config.train.epochs,
            pin_memory=device.type == "cuda",
            surveys=surveys,
        )
    )
    for each in met:
        loader.note(each)
    return loader


def compare_splits(loader: TrainLoader, held_out: EvaluationSet | None) -> None:
    """Raise UserError on every rank where what is held out cannot be learned from what is trained on; collective."""
    training = loader.samples
    if held_out is not None and isinstance(training, IndexedSamples):
        on_rank_zero(lambda: require_labels_in_training(training, held_out))


def with_steps(config: RunConfig, loader: TrainLoader) -> RunConfig:
    """The config with the steps that `train.epochs` comes to.

    Raises:
        UserError: warm-up and decay take longer than that.
    """
    if loader.samples.total is None:
        return config
    steps = -(-loader.samples.total // config.train.global_batch)
    try:
        require_schedule_fits(config.schedule, steps)
    except ValueError as error:
        raise UserError(f"train.epochs ({config.train.epochs}) comes to {steps} steps: {error}") from None
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def build_writer(config: RunConfig, run: RunDirectory, world: World, attempt: int) -> CheckpointWriter:
    """The checkpoint writer of this rank; rank 0 first clears away what killed attempts left half written."""
    on_rank_zero(lambda: clean(run.checkpoints))
    return CheckpointWriter(
        run.checkpoints,
        rank=world.rank,
        world=world.size,
        attempt=attempt,
        retention=Retention(config.checkpoint.keep, config.checkpoint.keep_every),
        merge_cursors=merge_cursors,
        on_commit=run.note_saved,
    )
