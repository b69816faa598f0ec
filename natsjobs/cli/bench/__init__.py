"""``natsjobs bench``: this library and the same design on Redis, on the same work, in one run.

Owns the peer, the work, the measuring and the table; nothing of the library is tuned for it, and its settings are the
defaults, unless a row says so. Rounds alternate between the contenders, so that a busy moment of the machine hits all;
each of them gets a fresh server and fresh, warm processes every time. Every round checks that everything arrived, once
and in order, while it measures: a fast run that lost something is an error and no figure. What else was measured is
shown all the same, also when it is stopped.

From the bottom: ``sides`` says what is measured of a system; ``ours``, ``peer`` and ``bare`` (nats-py by itself) are
the three. ``actor`` is a process that plays a producer (``producing``) and a reader (``reading``) on a side.
``servers`` starts nats-server, redis-server and actors; ``stage`` is who takes part, and where. ``live``, ``logs`` and
``standing`` are the work. ``catalog`` says what each figure is, and lists the works; ``rows`` says what the table
compares and what is to be reached; ``report`` and ``picture`` show it, ``explaining`` says it in the help; ``command``
carries it out.
"""
