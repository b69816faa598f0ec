"""The engine on a real NATS server, with nats-py. The only package that imports nats-py.

From the bottom: ``faults`` (what errors mean), ``tap`` (nats-py's private parts; those below it in ``socket`` and
``frames``), ``connecting`` (how our own connections are opened), ``wire`` (requests and interests over one connection
at a time), ``stream`` and ``bus`` (the ports), ``setup`` (settings of stream and bucket), ``link`` (puts them
together), ``backend`` (the public pair).
"""

from nats.aio.client import Client

from natsjobs.jetstream.backend import NatsEventTransport, NatsJobStore
from natsjobs.jetstream.link import NatsLink, link_for

__all__ = ["Client", "NatsEventTransport", "NatsJobStore", "NatsLink", "link_for"]
