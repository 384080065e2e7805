"""Web console on the management API's port. Imports `control` and below.

Every page calls the management API, over its own routes and in this process (an ASGI call, no
socket), with the cookie of the visitor's browser. So the console can do nothing that its visitor
could not do by `curl`: roles, the audit log, CSRF protection and rate limits of logins apply to
every response, not only where a page implements them. A direct call of the control plane would save
a millisecond and would have to repeat all of that.

Pages are rendered completely on the server and work without scripts. A script of the page requests
a stream of the changed parts (server-sent events) and replaces them. No content comes from other
sites, and the content security policy forbids it.
"""

from headrace.console.app import build_console

__all__ = ["build_console"]
