"""The commands, one per file; each has HELP, DESCRIPTION, EXAMPLES, `add_arguments(parser)`, `run(args, terminal)`."""

from minivit.cli.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]
