"""The Lua scripts that say who calls, and whether this caller may."""

from typing import Final

from headrace.gateway.policy import ApiKey, GatewayPolicy
from headrace.gateway.scripts import quoted

IDENTIFY: Final = "identify"
AUTHORIZE: Final = "authorize"

IDENTIFY_SOURCE: Final = """
function envoy_on_request(handle)
  if handle:filterContext():get("rule") == nil then return end
  handle:respond({[":status"] = "401"}, "Unauthorized")
end
"""

AUTHORIZE_SOURCE: Final = """
function envoy_on_request(handle)
  handle:respond({[":status"] = "401"}, "Unauthorized")
end
"""


def identify_source(policy: GatewayPolicy) -> str:
    """The script with the keys and rules of `policy` in it."""
    keys = "\n".join(_key_line(key) for key in policy.keys)
    return f"local KEYS = {quoted(keys)}\n{IDENTIFY_SOURCE}"


def _key_line(key: ApiKey) -> str:
    """`ID DIGEST EXPIRES TIER NAME SCOPES...`, a minus sign for nothing."""
    expires = "-" if key.expires_at is None else f"{key.expires_at:.3f}"
    return " ".join((key.id, key.digest, expires, key.tier or "-", key.name, *key.scopes))
