"""One command or group a file. At import only typer and the standard library: `ouzel --help` stays quick."""
