"""F0, the nouns: frozen values and enums that every floor speaks in.

Here: identities, topology, requests, observations, policies, reasons, errors, events. Not here: anything that acts,
waits, reads a clock or draws a number. May import: stdlib values (dataclasses, enum, typing, math).
To add one: a frozen dataclass in the file whose question it answers; a new reason is a member of an Enum in reasons.py.
"""
