"""The command `modelops`."""

import typer

from modelops.commands.bundle import app as bundle
from modelops.commands.debug import debug
from modelops.commands.doctor import doctor
from modelops.commands.example import example
from modelops.commands.leaks import leaks
from modelops.commands.review import review
from modelops.commands.run import run
from modelops.commands.study import study

app = typer.Typer(help="Run simulation bundles in sandboxes.", no_args_is_help=True, add_completion=False)
app.add_typer(bundle, name="bundle")
app.command("debug")(debug)
app.command("doctor")(doctor)
app.command("example")(example)
app.command("leaks")(leaks)
app.command("review")(review)
app.command("run")(run)
app.command("study")(study)


def main() -> None:
    """The entry point of the console script."""
    app(prog_name="modelops")


if __name__ == "__main__":
    main()
