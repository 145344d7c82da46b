"""The entry point: parse a command line, run it, exit with its code. The only place where errors are shown."""

from __future__ import annotations

import sys

try:
    import os
    import signal
    import traceback

    import typer
    import typer.main

    from llmft_cli.base.errors import Interrupted, LlmftError, UsageError, from_library_error, from_os_error, is_interrupt
    from llmft_cli.cli import completion
    from llmft_cli.cli.commands import app
    from llmft_cli.cli.memory_hints import with_memory_hint
except KeyboardInterrupt:  # Ctrl-C right after the start, when there is no error boundary yet
    sys.exit(130)


IN_A_SHELL = "run it in bash, zsh or fish, or print the script for one of them: _LLMFT_COMPLETE=source_bash llmft"


def main() -> None:
    """Run the command line and exit with its code: the one error boundary."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or os.environ.get("LLMFT_DEBUG") == "1"
    try:
        code = run_command(arguments)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        # From here on, another Ctrl-C ends the process at once instead of in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        known = as_llmft_error(error)
        if debug or known is None:
            traceback.print_exc()
        code = report(known or bug(error), "--json" in arguments)
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Parse and run a command line (without arguments: show the help); returns the exit code.

    Typer's own main would turn Ctrl-C and closed pipes into bare exits before we could report them.
    """
    root = typer.main.get_command(app)
    if completion.asked_for():
        root.main(arguments, prog_name="llmft")  # prints what the shell asked for, and exits
    try:
        with root.make_context("llmft", list(arguments) or ["--help"]) as context:
            root.invoke(context)
    except typer.Exit as leave:
        if leave.exit_code:  # only Typer exits so, if it does not know the shell for completion
            raise UsageError("shell not recognised", IN_A_SHELL) from None
        return 0 if arguments else UsageError.exit_code
    return 0


def as_llmft_error(error: BaseException) -> LlmftError | None:
    """The error to show to the user for whatever ended a command, or None if it is a bug in llmft."""
    if isinstance(error, LlmftError):
        return error
    if is_interrupt(error):
        return Interrupted("interrupted", "finished work is saved")
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        page = "--help-all" if hasattr(error, "option_name") else "--help"  # the short page hides most options
        return UsageError(error.format_message(), f"see {context.command_path} {page}" if context else f"see {page}")
    known = from_os_error(error) if isinstance(error, OSError) else None
    return with_memory_hint(known or from_library_error(error), sys.argv[1:])


def bug(error: BaseException) -> LlmftError:
    return LlmftError(f"{type(error).__name__}: {error}", "this is a bug in llmft; please report it with the lines above")


def report(error: LlmftError, as_json: bool) -> int:
    from llmft_cli.cli.console import Console

    Console(as_json=as_json).error(error)
    return error.exit_code
