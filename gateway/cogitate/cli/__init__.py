"""The `cogitate` command.

`main` parses and dispatches to one module a command in `commands`; `mesh` starts and stops the
processes of a mesh, `view` turns events into a picture, `measure` evaluates.
"""
