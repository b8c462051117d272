"""The engine `openai`: gangs on a server that speaks OpenAI's chat completions.

* ``client``   HTTP: streams, time limits, retries, what errors mean
* ``probe``    what the server can do, tried when the decoder starts
* ``pieces``   names for pieces of text, in the place of token ids
* ``chat``     from messages of the mesh to messages of the API
* ``source``   one agent's call as a stream of tokens
* ``build``    puts these together
"""
