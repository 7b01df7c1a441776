"""`ouzel model`: models as artifacts, their registries and their variants. One command a file."""

import typer

from consumer.commands.model.compare import compare
from consumer.commands.model.init import init
from consumer.commands.model.list import list_versions
from consumer.commands.model.optimize import optimize
from consumer.commands.model.promote import promote
from consumer.commands.model.pull import pull
from consumer.commands.model.register import register
from consumer.commands.model.rollback import rollback
from consumer.commands.model.show import show
from consumer.commands.model.verify import verify

app = typer.Typer(no_args_is_help=True, help="Models: describe, verify, register, roll out, optimise, compare.")
app.command("init")(init)
app.command("verify")(verify)
app.command("register")(register)
app.command("pull")(pull)
app.command("list")(list_versions)
app.command("show")(show)
app.command("promote")(promote)
app.command("rollback")(rollback)
app.command("optimize")(optimize)
app.command("compare")(compare)
