"""A picture of commands in a terminal, from recordings made with `script -qefc "stty cols 100; COMMAND" FILE`.

Usage: python docs/images/terminal.py docs/images/demo.svg FILE...
"""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 100
UP, ERASE = "\x1b[1A", "\x1b[2K"
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def command_and_lines(recording: str) -> tuple[str, list[str]]:
    """What was typed, and the lines that stay on the screen; progress bars erase their own."""
    header, *rest = recording.split("\n")
    typed = re.search(r'\[COMMAND="(?:stty [^;]*; )?(.*)" <', header)
    assert typed is not None
    shown: list[str] = []
    for line in "\n".join(rest).split("\nScript done on ")[0].split("\n"):
        for _ in range(line.count(UP)):
            shown.pop()
        shown.append(re.sub(r"\x1b\[\?25[hl]", "", line.split(ERASE)[-1]).strip("\r"))
    return typed[1].replace('\\"', '"'), shown


def main() -> None:
    picture, *files = map(Path, sys.argv[1:])
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        for number, file in enumerate(files):
            command, lines = command_and_lines(file.read_bytes().decode())
            console.print(Text("\n" * min(number, 1) + f"$ {command}", style="bold"))
            console.print(Text.from_ansi("\n".join(lines).strip("\n")))
        svg = console.export_svg(title="make demo", theme=MONOKAI)
    # No font from the network: pictures on the web may not fetch one.
    svg = re.sub(r"@font-face \{[^}]*\}\s*", "", svg).replace("Fira Code, monospace", FONT)
    picture.write_text(svg, encoding="utf-8")


main()
