"""The protocol itself: log, fencing, resume, liveness, presence, abort, retention. Written once, for every backend.

The engine owns every decision of the wire protocol and keeps the promises; it knows neither nats-py nor how a stream
is stored. It stands on three small ports (``ports.py``): a ``Stream`` with compare-and-set appends, a ``Bus`` of
subjects, and the ``Link`` that holds both. ``natsjobs.jetstream`` implements them with nats-py, ``natsjobs.memory``
in a dictionary; so the memory backend has the same semantics because it runs the same code.
"""
