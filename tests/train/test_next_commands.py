"""What a finished run tells to do next can be pasted into a shell."""

import shlex

import pytest

from llmscale.train.finish import show_next


@pytest.mark.parametrize("directory", ["runs/a", "my runs/$(reboot)", "it's; ls", "x" * 150 + " y"])
def test_commands_name_the_directory_as_one_word(directory, capsys):
    show_next(directory, f"{directory}/report/loss.png", generates=True)
    lines = capsys.readouterr().out.splitlines()
    commands = [line.partition("llmscale ")[2] for line in lines if "llmscale " in line]
    words = [shlex.split(command) for command in commands]
    assert [word[0] for word in words] == ["report", "generate", "eval", "checkpoint"]
    assert all(directory in word for word in words)
    assert f"{directory}/report/loss.png" in shlex.split(lines[1].replace(",", ""))
