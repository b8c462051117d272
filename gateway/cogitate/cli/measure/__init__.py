"""Measures a running mesh, question by question, in many settings.

`setting` says how questions are asked and makes grids of it, `ask` asks one, `run` asks all of them
in alternation, `results` keeps what came of each in a file, `statistics` and `paired` make numbers
of it (pure), `compare` pairs settings (pure), `report` and `plot` show.
"""
