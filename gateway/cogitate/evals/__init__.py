"""Datasets that measure a running mesh: questions and strict checks of answers.

`datasets.load(name, limit)` is the way in to our own sets: `boards` and `countdown` draw pictures
of numbered cards, `easy_vqa` reads the public test split, `checks` decides whether an answer is
right, `render` and `sources` hold the drawing. `labels`, `tables`, `charts`, `compare`,
`followups`, `chains` and `outside` draw an `Item` each: pictures by `canvas`, words from `nouns`,
questions from the grammars in `phrases`, all split into trained and held out. `jsonl` reads
anybody's questions, `gym` has those of Reasoning Gym; both compare answers as the aggregator does,
by its pure `core.answers`. Nothing
here imports the model or reaches the mesh.
"""
