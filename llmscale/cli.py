"""The command line: a group that imports a command when it is used."""

from __future__ import annotations

import importlib
import signal
from typing import Any

import click

from llmscale.commands.local_rank import LOCAL_RANK, adopt
from llmscale.commands.mistakes import mistakes_explained
from llmscale.distributed.ending import last_block

COMMANDS = {
    "chat": "llmscale.commands.chat:chat",
    "checkpoint": "llmscale.commands.checkpoint:checkpoint",
    "compare": "llmscale.commands.compare:compare",
    "data": "llmscale.commands.data:data",
    "doctor": "llmscale.commands.doctor:doctor",
    "embed": "llmscale.commands.embed:embed",
    "eval": "llmscale.commands.eval:evaluate",
    "export": "llmscale.commands.export:export_model",
    "generate": "llmscale.commands.generate:generate",
    "import": "llmscale.commands.import_:import_model",
    "launch": "launcher.commands:launch",
    "parity": "llmscale.commands.parity:parity",
    "plan": "llmscale.commands.plan:plan",
    "report": "llmscale.commands.report:report",
    "runs": "llmscale.commands.runs:runs",
    "schema": "llmscale.commands.schema:schema",
    "topics": "llmscale.commands.topics:topics",
    "train": "llmscale.commands.train:train",
}
"""Module and name of each."""


class LazyGroup(click.Group):
    """A group that imports its commands when they are used, and explains mistakes."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        with mistakes_explained():
            return super().make_context(*arguments, **settings)

    def invoke(self, context: click.Context) -> Any:
        # Not around the whole of click, which would turn Ctrl-C into its own message and exit code first.
        with mistakes_explained():
            return super().invoke(context)

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]


@click.group(
    "llmscale",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="llmscale")
@LOCAL_RANK
def cli(local_rank: int | None) -> None:
    """Train language models, from raw text to an evaluated model."""
    adopt(local_rank)


def main() -> None:
    """Entry point of the `llmscale` command."""
    with last_block():
        try:
            cli.main(prog_name="llmscale")
        finally:
            # The exit code stands: Ctrl-C while the process ends changes nothing any more.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
