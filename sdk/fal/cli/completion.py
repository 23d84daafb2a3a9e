"""``fal completion``: what a shell needs for tab completion.

Click writes the script; this prints it.
"""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print tab completion for your shell.

    \b
    bash:  eval "$(fal completion bash)"      in ~/.bashrc
    zsh:   eval "$(fal completion zsh)"       in ~/.zshrc
    fish:  fal completion fish | source       in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from fal.cli import cli

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(cli, {}, "fal", "_FAL_COMPLETE").source())
