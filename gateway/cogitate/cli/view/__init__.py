"""What a person sees of a contemplation.

`state` turns events into a picture's content (pure), `lanes` draws it, `lines` says it in plain
lines, `verdict` and `trace` draw what remains when it is over, `crops` turns pixels into text.
"""
