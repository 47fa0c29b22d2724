"""The command line: parse, call, print, exit code; nothing else.

`plan` answers; the other commands live in modules of their own and are imported when asked for. A new command
is one row of COMMANDS.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from planner.errors import INTERNAL, INTERRUPTED, OK, USAGE, PlanError
from planner.flags import Flags, with_flags

#: name -> (module, function, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "why": ("planner.cli_model", "why", "the itemised bill of one model, its roofline, its sources"),
    "command": ("planner.cli_model", "command", "the exact command that runs a model, for one engine or all"),
    "show": (
        "planner.cli_facts",
        "show",
        "a model of the catalogue, or a GGUF file, config.json or directory",
    ),
    "models": ("planner.cli_facts", "models", "list the models"),
    "hw": ("planner.cli_facts", "hw", "list the devices, show one, or detect this machine"),
    "check": ("planner.cli_check", "check", "hold the promises of a spec against the predictions (CI gate)"),
    "predict": ("planner.cli_batch", "predict", "price every row of a file of measurements"),
    "calibrate": ("planner.cli_calibrate", "calibrate", "learn from your own benchmark files; undo, list"),
    "validate": ("planner.cli_batch", "validate", "compare predictions with measurements"),
    "measure": ("planner.cli_run", "measure", "measure this processor; plan uses it from then on"),
    "run": ("planner.cli_run", "run", "run a GGUF file on this processor"),
    "verify": ("planner.cli_run", "verify", "predictions beside measurements of the runner, line by line"),
    "serve": ("planner.cli_run", "serve", "serve a GGUF file on the loopback, OpenAI-compatible"),
    "tasks": ("planner.cli_facts", "tasks", "list the tasks with their lengths and limits"),
}

HELP = """
Which LLM, quantization, engine and settings run on this hardware, how fast, in how much memory.

Examples:

\b
  plan                                      this machine, detected
  plan --vram 8G --task chat                any graphics card of 8 GB
  plan --gpu 2x3090 --ram 64G --task code   two cards, and a host to spill into
  plan why qwen3-8b --vram 8G               the bill and the reasons of one model

Memory is binary (8G = 8GB = 8 GiB), tokens count in 1024s (32k = 32768).

Exit codes:

\b
  0  answered          4    unknown model, device, engine, task or format
  1  a check failed    5    environment: file, network, missing extra
  2  usage             70   internal error
  3  nothing fits      130  interrupted
"""


class LazyGroup(TyperGroup):
    """A command group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, function, help_line = COMMANDS[cmd_name]
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        found = getattr(importlib.import_module(module), function)
        single.command(cmd_name, help=" ".join((found.__doc__ or help_line).split()))(found)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row[2]) for name, row in COMMANDS.items()])


app = typer.Typer(
    name="plan",
    cls=LazyGroup,
    help=HELP,
    invoke_without_command=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from planner import __version__

        typer.echo(f"llm-plan {__version__}")
        raise typer.Exit


@app.callback()
@with_flags
def plan(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
    *,
    flags: Flags,
) -> None:
    if ctx.invoked_subcommand is not None:
        given = flags.given()
        if given:
            from planner.errors import UsageError

            name = f"plan {ctx.invoked_subcommand}"
            raise UsageError(
                "flags come after the command", f"{name} ... --{next(iter(given)).replace('_', '-')} ..."
            )
        return
    from planner.cli_answer import answer

    raise typer.Exit(answer(flags))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Every expected failure prints one line and a hint on
    stderr."""
    # start-up allocates much and frees nothing: collecting it costs a tenth of the time
    gc.set_threshold(50_000)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without `█` shows `?`
            stream.reconfigure(errors="replace")
    swallowed: list[bool] = []  # an interrupt inside LLVM's callback, which surfaces as another error
    hook = sys.unraisablehook
    sys.unraisablehook = lambda told: (
        swallowed.append(True) if told.exc_type is KeyboardInterrupt else hook(told)
    )
    try:
        code = app(args=arguments, prog_name="plan", standalone_mode=False)
        return int(code or OK)
    except PlanError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # the latter is what click and rich make of a broken pipe
        return _read_enough()
    except Exception as error:
        return INTERRUPTED if swallowed else _other(error)
    finally:
        sys.unraisablehook = hook


def _read_enough() -> int:
    """Whoever reads the output has left (`| head`), which is no failure."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return OK


def _other(error: Exception) -> int:
    """The exit code of an error that is not ours: usage (from the parser), facts' own errors, or a bug."""
    from planner.errors import translate

    known = translate(error)
    if known is not None:
        return _fail(known.message, known.hint, known.exit_code)
    if type(error).__name__ == "Abort":
        return INTERRUPTED
    if type(error).__name__ == "Exit":
        return int(getattr(error, "exit_code", OK))
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        where = getattr(getattr(error, "ctx", None), "command_path", "plan")
        return _fail(" ".join(error.format_message().split()), f"{where} --help", USAGE)
    import traceback

    traceback.print_exc()
    return _fail(
        f"internal error: {type(error).__name__}: {error}",
        "this is a defect; the lines above are its trace",
        INTERNAL,
    )


def _fail(message: str, hint: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
