"""`ouzel model`: models as artifacts, their registries and their variants. One command a file."""

import typer

app = typer.Typer(no_args_is_help=True, help="Models: describe, verify, register, roll out, optimise, compare.")
