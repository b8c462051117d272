"""Datasets that measure a running mesh: generators of questions and strict checks of answers.

`datasets.load(name, limit)` is the way in. `boards` and `countdown` draw pictures of numbered
cards, `easy_vqa` reads the public test split, `checks` decides whether an answer is right,
`render` and `sources` hold the drawing. Nothing here imports the model or the mesh.
"""
