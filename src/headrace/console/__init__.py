"""Web console on the management API's port. Imports `control` and below.

Every page asks the management API, over its own routes and in this process (an ASGI call, no
socket), with the cookie of the browser that came. So the console can do nothing that its visitor
could not do by `curl`: roles, the trail, CSRF and the brake on guessing hold because they stand
between it and every answer, not because each page remembers them. A direct call of the control
plane would save a millisecond and need all of that again.

Pages are rendered here, whole, and work without scripts. A script of the page's own asks for a
stream of the parts that changed (server-sent events) and puts them in place. Nothing comes from
another site, and the content security policy forbids it.
"""

from headrace.console.app import build_console

__all__ = ["build_console"]
