"""LLM services: the catalogue, recognising their keys, and masking them.

The modules that only look at texts need nothing of the server: the command line of people who own keys uses them, too.
"""
