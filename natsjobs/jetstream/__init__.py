"""The engine on a real NATS server, with nats-py. Nothing else imports nats-py, but the benchmark that measures it.

From the bottom: ``faults`` (what errors mean), ``headers``, ``acks`` and ``answers`` (what comes, decoded), ``tap``
(nats-py's private parts; those below it in ``socket`` and ``frames``, the moment of writing in ``turn``),
``credentials`` and ``connecting`` (how our own connections are opened), ``connection`` (one at a time, kept;
``failing`` knows for how long it has not worked), ``inbox`` and ``wire`` (requests and interests over it), ``stream``
and ``bus`` (the ports; a stream reads at the leader, in a ``line``, in large numbers by ``gathering``, and pages from
any replica by ``direct``, in a line of their own in ``pages``, in large numbers by ``walking``), ``setup``,
``manifests`` and ``inspection`` (settings of stream and bucket: made, printed, looked at), ``link`` (puts them
together), ``backend`` (the public pair).
"""

from nats.aio.client import Client

from natsjobs.jetstream.backend import NatsEventTransport, NatsJobStore
from natsjobs.jetstream.link import NatsLink, link_for

__all__ = ["Client", "NatsEventTransport", "NatsJobStore", "NatsLink", "link_for"]
