"""The gateway: jobs over HTTP, as an ASGI application. Needs the extra ``natsjobs[http]``.

``sse`` (events as server-sent events, pure), ``delivery`` (what one request wants to see of a job), ``feed`` (one open
response: reader, buffer, socket), ``desk`` (what all endpoints share), ``streams``, ``chat``, ``listing`` and
``figures`` (the endpoints), ``page`` (for people), ``openapi`` (for programs), ``access`` (who may), ``admission`` (how
many), ``requests`` (what is asked), ``problems`` (errors as answers), ``settings``, ``app`` (all of it together),
``serving`` (under uvicorn). Of jobs it uses the public names alone: a gateway can do nothing with them that its
application could not.
"""

from natsjobs.http.access import Action, Authorize, Only, bearer, named_user, owners, this_machine
from natsjobs.http.app import Gateway, gateway
from natsjobs.http.settings import GatewayConfig
from natsjobs.http.sse import encode_sse

__all__ = [
    "Action",
    "Authorize",
    "Gateway",
    "GatewayConfig",
    "Only",
    "bearer",
    "encode_sse",
    "gateway",
    "named_user",
    "owners",
    "this_machine",
]
