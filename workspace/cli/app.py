"""The commands' list."""

from __future__ import annotations

import typer

from workspace.cli import demo, doctor, files, image, life, run

app = typer.Typer(
    help="Workspaces for running code that nobody has reviewed.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PASS_ON = {"allow_interspersed_args": False}

app.command("run", context_settings=_PASS_ON)(run.run)
app.command("create")(life.create)
app.command("exec")(run.execute)
app.command("list")(life.list_all)
app.command("info")(life.info)
app.command("cp")(files.cp)
app.command("ls")(files.ls)
app.command("cat")(files.cat)
app.command("kill")(life.kill)
app.command("prune")(life.prune)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(image.app, name="image")
