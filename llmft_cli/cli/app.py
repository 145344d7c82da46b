"""The entry point: parse a command line, run it, exit with its code. The only place where errors are shown."""

from __future__ import annotations

import sys

try:
    import os
    import signal
    import traceback
    from contextlib import suppress

    import typer
    import typer.main

    from llmft_cli.base.errors import Interrupted, LlmftError, UsageError, from_library_error, from_os_error, is_interrupt
    from llmft_cli.cli import completion, standard_streams, termination
    from llmft_cli.cli.commands import app
    from llmft_cli.cli.memory_hints import with_memory_hint
except KeyboardInterrupt:  # Ctrl-C right after the start, when there is no error boundary yet
    sys.exit(130)


READER_LEFT = 141  # as a shell reports a program that SIGPIPE ended
IN_A_SHELL = "run it in bash, zsh or fish, or print the script for one of them: _LLMFT_COMPLETE=source_bash llmft"


def main() -> None:
    """Run the command line and exit with its code: the one error boundary."""
    standard_streams.make_safe()
    standard_streams.keep_stdout_for_results()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or os.environ.get("LLMFT_DEBUG") == "1"
    as_json = "--json" in arguments
    try:
        termination.end_like_an_interrupt()
        code = run_command(arguments)
        standard_streams.finish_stdout()
    except (Exception, KeyboardInterrupt) as error:
        # From here on, another Ctrl-C or signal ends the process at once instead of in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        termination.end_at_once()
        code = READER_LEFT if has_no_reader(error) else explain(error, as_json, debug)
    sys.exit(code)


def has_no_reader(error: BaseException) -> bool:
    """Whether a command ended early because nobody reads its output (`| head`): there is nobody to tell."""
    if not standard_streams.is_reader_gone(error) or not standard_streams.is_stdout_closed():
        return False
    standard_streams.discard(sys.stdout)
    return True


def explain(error: BaseException, as_json: bool, debug: bool) -> int:
    """Show what ended a command; returns the exit code."""
    known = as_llmft_error(error)
    if debug or known is None:
        traceback.print_exception(error)
    return report(known or bug(error), as_json)


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

    # With --json on a full disk, only the exit code is left to say it.
    with suppress(OSError):
        Console(as_json=as_json).error(error)
    with suppress(OSError):
        standard_streams.finish_stdout()
    return error.exit_code
