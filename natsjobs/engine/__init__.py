"""The protocol itself: log, fencing, resume, liveness, presence, abort, retention. Written once, for every backend.

The engine owns every decision of the wire protocol and keeps the promises; it knows neither nats-py nor how a stream
is stored. It stands on three small ports (``ports.py``): a ``Stream`` with compare-and-set appends, a ``Bus`` of
subjects, and the ``Link`` that holds both. ``natsjobs.jetstream`` implements them with nats-py, ``natsjobs.memory``
in a dictionary; so the memory backend has the same semantics because it runs the same code.

A way through it, each line from what is called to what it stands on; every module says what it guarantees:

* on the wire: ``subjects`` and ``wire`` (names, bodies, cursors), ``records`` and ``jobs`` (bucket, job record)
* begin: ``store``, ``creation``, ``runs``
* write: ``linger`` and ``departures`` (when), ``backlog`` (what waits), ``appender`` (group commit), ``chain`` (one
  append, and certainty about it), ``headroom``
* read: ``transport``, ``reader`` and ``hand`` (one viewer), ``tail``, ``window`` and ``bell`` (live, shared), ``pages``
  and ``replay`` (the log), ``lookout`` (is there more?), ``turns`` (the next generation)
* end: ``aborts``, ``ends``, ``terminals``
* by itself: ``liveness`` (leases, dead owners), ``upkeep`` and ``survey`` (the sweep)
* who watches: ``presence``, ``census``, ``audience``
* what callers ask: ``lists`` and ``moment``, ``content_state``, ``ledger`` (token usage)

``replica`` puts them together on one link.
"""
