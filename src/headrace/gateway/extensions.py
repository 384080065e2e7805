"""Filters whose configuration stands in files of their own (ECDS), because it changes often.

A change of a listener drains its connections; one of these files is in force within a millisecond
and disturbs nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.gateway.callers import identify_filter, jwt_filter
from headrace.gateway.limits import (
    FLOOD_FILTER,
    LOCAL_FILTER,
    LOCAL_TYPE,
    flood_config,
    local_config,
)
from headrace.gateway.policy import GatewayPolicy
from headrace.gateway.resources import Json, Resource, any_of
from headrace.gateway.settings import EndpointRoute

TYPE: Final = "envoy.config.core.v3.TypedExtensionConfig"
"""What stands in such a file: a filter's configuration with its name."""


@dataclass(frozen=True, slots=True)
class Extension:
    """A filter's name, its configuration's type, and the file that holds it."""

    filter_name: str
    type_name: str
    file: str

    def resource(self, config: Resource) -> Resource:
        """What the file holds."""
        return {"name": self.filter_name, "typed_config": any_of(self.type_name, config)}

    def discovered(self, directory: Path) -> Resource:
        """The filter as it stands in a chain: its configuration is read from the file."""
        types: Json = [any_of(self.type_name)["@type"]]
        source: Resource = {
            "path_config_source": {"path": str(directory / self.file)},
            "resource_api_version": "V3",
        }
        return {
            "name": self.filter_name,
            "config_discovery": {"config_source": source, "type_urls": types},
        }


JWT: Final = Extension(
    "headrace.jwt",
    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    "jwt.json",
)
IDENTIFY: Final = Extension(
    "headrace.identify", "envoy.extensions.filters.http.lua.v3.Lua", "identify.json"
)
LIMITS: Final = Extension(LOCAL_FILTER, LOCAL_TYPE, "limits.json")
FLOOD: Final = Extension(FLOOD_FILTER, LOCAL_TYPE, "flood.json")
EXTENSIONS: Final = (JWT, IDENTIFY, LIMITS, FLOOD)


def extension_configs(
    policy: GatewayPolicy, endpoints: Sequence[EndpointRoute] = ()
) -> Mapping[Extension, Resource]:
    """The configuration of each."""
    return {
        JWT: jwt_filter(policy),
        IDENTIFY: identify_filter(policy),
        LIMITS: local_config(policy.access, endpoints),
        FLOOD: flood_config(policy.access, endpoints),
    }
