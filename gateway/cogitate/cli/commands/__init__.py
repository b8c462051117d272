"""One module a command: NAME, HELP, DESCRIPTION, `configure(parser)` and `run(args)`."""
