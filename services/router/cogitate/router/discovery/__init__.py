"""Endpoints the router finds by itself: addresses in a file, and names that DNS resolves.

`sources` which addresses there are · `dialing` a stream of reports from each, kept open
"""
