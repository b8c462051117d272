"""OpenAI's interface on the mesh's: requests to specs, events to what OpenAI's clients read.

    schemas     what a request may hold, strictly
    asking      requests to ContemplateRequest
    telling     events to pieces: reasoning, answer, calls, ending
    chat        pieces as chat completions, whole and in chunks
    responses   pieces as a response, whole and as typed events
    summary     usage, and how an answer came about

Nothing here waits or knows of HTTP.
"""
