"""`tickwheel completion`: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command(
    epilog="\b\nbash:  tickwheel completion bash > ~/.local/share/bash-completion/completions/tickwheel"
    "\nzsh:   tickwheel completion zsh > ~/.zfunc/_tickwheel"
    "\nfish:  tickwheel completion fish > ~/.config/fish/completions/tickwheel.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "click completes these three"
    root = context.find_root().command
    click.echo(kind(root, {}, "tickwheel", "_TICKWHEEL_COMPLETE").source())
