"""A path that is empty, as of a shell variable that is not set, is refused by every command."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from llmscale.cli import COMMANDS, cli


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


PATHS = [
    pytest.param(words, command, parameter, id=f"{'-'.join(words)}-{parameter.name}")
    for words, command in commands(cli)
    for parameter in command.params
    if isinstance(parameter.type, click.Path)
]


def test_there_are_paths_of_most_commands() -> None:
    assert len({param.values[0][0] for param in PATHS}) > len(COMMANDS) - 5


@pytest.mark.parametrize(("words", "command", "parameter"), PATHS)
def test_it_is_refused(words: tuple[str, ...], command: click.Command, parameter: click.Parameter) -> None:
    arguments = list(words)
    for other in command.params:
        value = "" if other is parameter else "x"
        if isinstance(other, click.Argument):
            arguments.append(value)
        elif other is parameter or other.required:
            arguments += [other.opts[-1], value]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "the path is empty" in done.stderr
    assert "Traceback" not in done.stderr
