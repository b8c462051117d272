"""Models on this machine: where they are (`folder`), which can be fetched (`catalogue`), how they
come in (`fetching`, `importing`), and what a command does when its model is not there (`offering`).

Nothing here is reached by a request: only the command line fetches.
"""
