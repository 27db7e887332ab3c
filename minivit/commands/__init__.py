"""The commands, one file each: HELP, DESCRIPTION, EXAMPLES, `add_arguments(parser)` and `run(args, terminal)`."""
