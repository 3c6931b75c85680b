"""The command `modelops`."""

import importlib
import os
from typing import Any

import typer
from typer.core import TyperGroup

# Each is a module of `modelops.commands`.
COMMANDS = ("bundle", "debug", "doctor", "example", "leaks", "review", "run", "study")


class Commands(TyperGroup):
    """A command's module is imported when the command is asked for: Dask and polars take a second."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"modelops.commands.{cmd_name}")
        except KeyboardInterrupt:
            os._exit(130)  # nothing has begun, and to take apart what is imported takes as long again
        if hasattr(module, "app"):
            return typer.main.get_command(module.app)
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(single)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False)


@app.callback()
def modelops() -> None:
    """Run simulation bundles in sandboxes."""


def main() -> None:
    """Run the command that `sys.argv` names."""
    app(prog_name="modelops")
