"""`spherecf evaluate`: protocols over embeddings files, one file per protocol."""

import typer

from spherecf.cli.evaluate import _calibration, _identification, _ijb, _rejection, _tenfold

app = typer.Typer(help="Evaluate embeddings by the protocols of the field.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


app.command("tenfold", epilog=_tenfold.EXAMPLE)(_tenfold.tenfold)
app.command("rejection", epilog=_rejection.EXAMPLE)(_rejection.rejection)
app.command("calibration", epilog=_calibration.EXAMPLE)(_calibration.calibration)
app.command("ijb", epilog=_ijb.EXAMPLE)(_ijb.ijb)
app.command("identification", epilog=_identification.EXAMPLE)(_identification.identification)
