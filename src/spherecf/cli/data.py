"""`spherecf data`: look into data sets and convert between their layouts."""

import typer

app = typer.Typer(help="Inspect and convert data sets.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass
