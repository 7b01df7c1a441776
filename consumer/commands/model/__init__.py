"""`ouzel model`: models as artifacts, their registries and their variants. One command a file."""

import typer

from consumer.commands.model.compare import compare
from consumer.commands.model.init import init
from consumer.commands.model.optimize import optimize
from consumer.commands.model.verify import verify

app = typer.Typer(no_args_is_help=True, help="Models: describe, verify, register, roll out, optimise, compare.")
app.command("init")(init)
app.command("verify")(verify)
app.command("optimize")(optimize)
app.command("compare")(compare)
