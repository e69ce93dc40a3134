"""`spherecf evaluate`: protocols over embeddings files, one file per protocol."""

import typer

from spherecf.cli.evaluate import _tenfold

app = typer.Typer(help="Evaluate embeddings by the protocols of the field.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


app.command("tenfold", epilog=_tenfold.EXAMPLE)(_tenfold.tenfold)
