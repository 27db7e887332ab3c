"""The commands, one file each: HELP, DESCRIPTION, EXAMPLES, `add_arguments(parser)` and `run(args, terminal)`."""

from minivit.cli.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]
