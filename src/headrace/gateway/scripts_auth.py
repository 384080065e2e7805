"""Lua scripts that authenticate and authorize callers.

A script that fails lets a request pass in Envoy, so each runs under `pcall` and rejects the
request on failure. Callers without authentication get the same response for every model, whether
it exists or not.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Final

from headrace.core.headers import (
    CALLER_HEADER,
    CREDENTIAL_HEADER,
    ISSUER_HEADER,
    PRIORITY_HEADER,
    TIER_HEADER,
)
from headrace.core.priorities import tier_levels
from headrace.core.spec.access import CertificateSpec, JwtSpec, TierSpec
from headrace.gateway.scripts import quoted
from headrace.gateway.scripts_text import BASE64_SOURCE, JSON_SOURCE, SHA256_SOURCE
from headrace.gateway.settings import ApiKey, GatewayPolicy

IDENTIFY: Final = "identify"
AUTHORIZE: Final = "authorize"
KEEP: Final = "+"
"""Prefix of a rule, or a whole rule: keep the caller's identity for the script that decides
later."""
NAMED: Final = "?"
"""In a rule: the endpoint that the request names, which has no route."""
EVERY: Final = "*"
"""In a rule: all endpoints."""
LISTED: Final = "="
"""In a rule: respond with the endpoints that the caller may use."""
VERIFY: Final = "verify"
"""Name of the listener and the cluster that verify tokens."""
_VERIFY_MS: Final = 5000
_LONGEST_RECHECK_S: Final = 60.0
KEY_LENGTH: Final = 59
"""Length of a key: `hr_`, twelve characters of id, an underscore, 43 of secret."""

# A rule is `ENDPOINT|VERSION|METHODS`, after a plus sign if the identity is to be kept for later,
# or a plus alone, which decides nothing: there are few rules, so each is parsed once. `ENDPOINT` is
# a name or one of NAMED, EVERY and LISTED. An identity is a table: caller, label, tier with its
# level, method, provider (of a token) and its set of scopes.
_SHARED_SOURCE: Final = r"""
local NOBODY = "authentication required: send an API key ('x-api-key: hr_...') or a token "
  .. "('authorization: Bearer ...'), or connect with a client certificate that this gateway trusts"

local parsed = {}
local function rule_of(text)
  local rule = parsed[text]
  if rule ~= nil then return rule end
  local plus, endpoint, version, methods = text:match("^(%+?)([^|]*)|([^|]*)|(.*)$")
  if text == "+" then plus, endpoint, version, methods = "+", "", "", "" end
  rule = {endpoint = endpoint, methods = {}, keeps = plus == "+", decides = text ~= "+"}
  if endpoint == LISTED then
    rule.lists = true
  elseif endpoint ~= "" then
    rule.scope = "infer:" .. endpoint
    rule.exact = rule.scope .. (version ~= "" and ":" .. version or "")
  end
  for method in methods:gmatch("[^,]+") do
    rule.methods[method] = true
    if method ~= "certificate" then rule.takes_headers = true end
  end
  parsed[text] = rule
  return rule
end

local function takes(rule, identity)
  local methods = rule.methods
  return methods[identity.method]
    or identity.provider ~= nil and methods["jwt:" .. identity.provider]
end

local function unauthorized(text, is_invalid)
  if text:sub(1, 1) == "!" then return {[":status"] = "503"}, text:sub(2) end
  local more = is_invalid and ', error="invalid_token"' or ""
  local headers = {[":status"] = "401", ["www-authenticate"] = 'Bearer realm="headrace"' .. more}
  return headers, text
end

-- The endpoint that a request names for which there is no route.
local function named(headers)
  local name = headers:get("x-model")
  if name ~= nil then return name:match("^[^~]*") end
  local path = headers:get(":path")
  name = path:match("^/v%d/models/([^/:?#]*)") or path:match("^/endpoints/([^/?#]*)") or ""
  return (name:gsub("[^%w_.-]", "?"):sub(1, 128))
end

local function may(identity, scope, exact)
  local scopes = identity.scopes
  return scope == nil or scopes["infer:*"] or scopes[scope] or scopes[exact]
end

-- What to answer to a caller who may not know whether there is such an endpoint: the same for every
-- rule, so that nothing tells whether there is.
local function stranger(identity, problem, endpoint, scope)
  if problem ~= nil then return unauthorized(problem, true) end
  if identity == nil then return unauthorized(NOBODY) end
  local header = 'Bearer realm="headrace", error="insufficient_scope", scope="%s"'
  local text = "'%s' may not call endpoint '%s': it needs the scope '%s'"
  return {[":status"] = "403", ["www-authenticate"] = header:format(scope)},
    text:format(identity.caller, endpoint, scope)
end

-- What to answer; nothing if the caller may go on, who is then named in the headers.
local function judge(handle, headers, rule, identity, problem, by_certificate)
  local endpoint, scope, exact = rule.endpoint, rule.scope, rule.exact
  if endpoint == NAMED then
    endpoint = named(headers)
    scope = "infer:" .. endpoint
    exact = scope
  end
  local is_taken = identity ~= nil and takes(rule, identity)
  if not (is_taken and may(identity, scope, exact)) then
    local shown = by_certificate(handle)
    local may_shown = shown ~= nil and may(shown, scope, exact)
    if is_taken or not (may_shown or identity ~= nil and may(identity, scope, exact)) then
      return stranger(identity or shown, problem, endpoint, scope)
    elseif may_shown and rule.methods.certificate and not (problem and rule.takes_headers) then
      identity = shown
    elseif identity ~= nil then
      return unauthorized("'" .. identity.label .. "' is not how callers show here who they are")
    else
      return unauthorized(problem or NOBODY, problem ~= nil)
    end
  end
  headers:replace(CALLER, identity.caller)
  headers:replace(CREDENTIAL, identity.label)
  if identity.tier ~= nil then
    headers:replace(TIER, identity.tier)
    headers:replace(PRIORITY, identity.level)
  end
end

local function run(decide)
  return function(handle)
    local works, reply, text = pcall(decide, handle)
    if works and reply == nil then return end
    if not works then
      handle:logErr("headrace: cannot tell who calls: " .. tostring(reply))
      reply, text = {[":status"] = "500"}, "the gateway cannot tell who calls"
    end
    handle:respond(reply, text)
  end
end
"""

# Envoy joins several `authorization` or `x-api-key` headers with commas, which no key and no token
# has: they are refused. Verified credentials are cached: a key until the keys change, a token for a
# while (`recheck` of its provider). A problem that begins with "!" is the gateway's.
_IDENTIFY_SOURCE: Final = r"""
local LONGEST = 128
local REMEMBERED = 4096
local REFUSED_S = 2

local now = os.time

local function set_of(list)
  local set = {}
  for _, word in ipairs(list) do set[word] = true end
  return set
end

local function escape(char) return string.format("%%%02X", char:byte()) end

-- Printable, one to one, and short enough for a header that ends in logs.
local function printable(text)
  text = text:gsub("[^\33-\36\38-\126]", escape)
  if #text <= LONGEST then return text end
  return text:sub(1, LONGEST - 17) .. "~" .. sha256(text):sub(1, 16)
end

local function tier_of(value)
  return LEVELS[value] ~= nil and value or nil
end

local lines = {}
for id, line in KEYS:gmatch("([^ \n]+) ([^\n]+)") do lines[id] = line end

local WRONG_KEY = "Unknown, expired or revoked API key"
local function by_key(key)
  local line = #key == KEY_LENGTH and lines[key:match("^hr_(%w+)_[%w_-]+$")]
  if not line then return nil, WRONG_KEY end
  local digest, expires, tier, name, scopes = line:match("^(%S+) (%S+) (%S+) (%S+) ?(.*)$")
  if sha256(key) ~= digest then return nil, WRONG_KEY end
  local entry = {
    caller = name, label = "key:" .. name, method = "key", tier = tier_of(tier), scopes = {},
    level = LEVELS[tier], ends = tonumber(expires) or math.huge, ended = WRONG_KEY,
    again = math.huge,
  }
  for scope in scopes:gmatch("%S+") do entry.scopes[scope] = true end
  return entry
end

local issuers = {}
for _, provider in ipairs(PROVIDERS) do issuers[provider.issuer] = provider end

local function object(text)
  local value = json(base64url(text))
  assert(type(value) == "table")
  return value
end

local function claims_of(token)
  local head, payload = token:match("^([%w_-]+)%.([%w_-]+)%.[%w_-]*$")
  return object(payload), object(head)
end

local function identity_of(provider, claims)
  local caller = claims[provider.caller]
  if type(caller) == "number" and caller % 1 == 0 and math.abs(caller) < 2 ^ 53 then
    caller = string.format("%.0f", caller)
  end
  if type(caller) ~= "string" or caller == "" then
    return nil, "The token names no caller in '" .. provider.caller_shown .. "'"
  end
  if type(claims.exp) ~= "number" then return nil, "The token says no time at which it ends" end
  local scopes, found = {}, claims[provider.scope]
  if type(found) == "string" then
    for scope in found:gmatch("%S+") do scopes[scope] = true end
  elseif type(found) == "table" then
    for place, scope in pairs(found) do
      local is_item = type(place) == "number" and type(scope) == "string"
      if is_item and scope:find("^%S+$") then scopes[scope] = true end
    end
  end
  return {
    caller = printable(provider.name .. "/" .. caller), label = "jwt:" .. provider.name,
    method = "jwt", provider = provider.name, tier = tier_of(claims[provider.tier]),
    level = LEVELS[claims[provider.tier]],
    scopes = scopes, ends = claims.exp + provider.skew + 1, ended = "The token has expired",
    again = now() + provider.recheck,
  }
end

local UNFIT = "None of its issuer's keys fits the token's signature"

-- What anybody can read in a token; nothing of it is verified yet.
local function flaw_of(token)
  local reads, claims, head = pcall(claims_of, token)
  if not reads then return "The token is not a signed JSON Web Token" end
  -- RFC 7515, section 4.1.11: Envoy ignores it, and so what its issuer relies on.
  if head.crit ~= nil then return "The token's header has 'crit', which is not supported" end
  local provider = type(claims.iss) == "string" and issuers[claims.iss]
  if not provider then return "The token's issuer is not known here" end
  if type(claims.exp) ~= "number" then return "The token says no time at which it ends" end
  if now() > claims.exp + provider.skew then return "The token has expired" end
  if type(claims.nbf) == "number" and now() + provider.skew < claims.nbf then
    return "The token is not valid yet"
  end
  local audiences = type(claims.aud) == "table" and claims.aud or {claims.aud}
  for _, audience in pairs(audiences) do
    if provider.audiences[audience] then return nil end
  end
  return "The token is for another audience"
end

local CANNOT = "!The gateway cannot verify tokens just now: try again"

local function by_token(handle, token)
  local flaw = flaw_of(token)
  if flaw ~= nil then return nil, flaw end
  local headers = handle:httpCall(VERIFY, {
    [":method"] = "GET", [":path"] = "/", [":authority"] = VERIFY,
    ["authorization"] = "Bearer " .. token,
  }, nil, VERIFY_MS)
  local status, issuer = headers[":status"], headers[ISSUER]
  if status == "401" or status == "403" then return nil, UNFIT end
  if status ~= "200" then return nil, CANNOT end
  local reads, claims = pcall(claims_of, token)
  if not reads or claims.iss ~= issuer or issuers[issuer] == nil then return nil, UNFIT end
  return identity_of(issuers[issuer], claims)
end

local function read_authorization(handle, value)
  local shown = value:match("^[Bb]earer ([%w_.-]+)$")
  if shown == nil then
    return nil, "The authorization header is not one 'Bearer TOKEN' or 'Bearer hr_...'"
  end
  if shown:sub(1, 3) == "hr_" then return by_key(shown) end
  return by_token(handle, shown)
end

-- By whole header values: looking at each character of a token would take longer than the rest.
local keys, authorizations, count = {}, {}, 0
local function remember(seen, value, entry)
  if count >= REMEMBERED then keys, authorizations, count = {}, {}, 0 end
  if seen[value] == nil then count = count + 1 end
  seen[value] = entry
end

-- Whoever sends the same wrong token again and again costs no more than others.
local refusals, refusal_count = {}, 0
local function refuse(value, problem)
  if refusal_count >= REMEMBERED then refusals, refusal_count = {}, 0 end
  if refusals[value] == nil then refusal_count = refusal_count + 1 end
  refusals[value] = {problem = problem, ends = now() + REFUSED_S}
end

-- Who an authorization header is of, looked at anew. Meanwhile others go on with what was known.
local function look_at(handle, value, former)
  local refusal = refusals[value]
  if refusal ~= nil and now() < refusal.ends then return nil, refusal.problem end
  if former ~= nil then former.again = now() + 1 end
  local entry, problem = read_authorization(handle, value)
  if entry ~= nil then
    remember(authorizations, value, entry)
  elseif problem == CANNOT then
    if former ~= nil then return former end
  else
    authorizations[value] = nil
    refuse(value, problem)
  end
  return entry, problem
end

-- What a request shows in its headers: who that is, or what is wrong with it; and the headers,
-- which have to be asked for again after a call.
local function shown(handle, headers)
  local key, value = headers:get("x-api-key"), headers:get("authorization")
  local entry, problem
  if key ~= nil then
    if value ~= nil then
      return nil, "Two credentials: send either x-api-key or authorization", headers
    end
    entry = keys[key]
    if entry == nil then
      entry, problem = by_key(key)
      if entry == nil then return nil, problem, headers end
      remember(keys, key, entry)
    end
  elseif value ~= nil then
    entry = authorizations[value]
    if entry == nil or now() >= entry.again then
      entry, problem = look_at(handle, value, entry)
      headers = handle:headers()
      if entry == nil then return nil, problem, headers end
    end
  else
    return nil, nil, headers
  end
  if now() >= entry.ends then return nil, entry.ended, headers end
  return entry, nil, headers
end

local function fits(pattern, value)
  if pattern:sub(1, 1) == "*" then
    return #pattern == 1 or value:sub(1 - #pattern) == pattern:sub(2)
  end
  if pattern:sub(-1) == "*" then return value:sub(1, #pattern - 1) == pattern:sub(1, -2) end
  return value == pattern
end

local function named_by(rule, ssl)
  if rule.kind == "common_name" then
    local subject = ssl:parsedSubjectPeerCertificate()
    local name = subject ~= nil and subject:commonName() or ""
    return name ~= "" and fits(rule.pattern, name) and name or nil
  end
  local is_dns = rule.kind == "dns"
  local names = is_dns and ssl:dnsSansPeerCertificate() or ssl:uriSanPeerCertificate()
  for _, name in ipairs(names or {}) do
    if is_dns then name = name:lower() end
    if name ~= "" and fits(rule.pattern, name) then return name end
  end
end

local function by_certificate(handle)
  if CERTIFICATES[1] == nil then return nil end
  local ssl = handle:streamInfo():downstreamSslConnection()
  if ssl == nil or not ssl:peerCertificateValidated() then return nil end
  local ends = ssl:expirationPeerCertificate()
  if type(ends) == "number" and os.time() >= ends then return nil end
  for _, rule in ipairs(CERTIFICATES) do
    local name = named_by(rule, ssl)
    if name ~= nil then
      return {
        caller = printable(rule.name .. "/" .. name), label = "certificate:" .. rule.name,
        method = "certificate", tier = tier_of(rule.tier), level = LEVELS[rule.tier],
        scopes = rule.set,
      }
    end
  end
end
for _, rule in ipairs(CERTIFICATES) do rule.set = set_of(rule.scopes) end

-- For the script that decides about a gRPC call, once it is known which model that is for.
local function freeze(identity)
  local scopes = {}
  for scope in pairs(identity.scopes) do scopes[#scopes + 1] = scope end
  return table.concat({
    identity.caller, identity.label, identity.tier or "", identity.method,
    identity.provider or "", identity.level or "", table.concat(scopes, " "),
  }, "\n")
end

local function keep(handle, name, value)
  handle:streamInfo():dynamicMetadata():set("headrace.identity", name, value)
end

-- The endpoints that a caller may use, in a template. `endpoints` marks those that authenticate
-- callers with a `!`, and those with OpenAI's API with an `@`; a `=` is before each alias.
local function list(template, identity)
  local usable, items, more = {}, {}, {}
  for scope in pairs(identity ~= nil and identity.scopes or {}) do
    usable[scope:match("^infer:([^:]*)") or ""] = true
  end
  local item, openai = template:get("item"), template:get("openai_item")
  local placeholder, separator = template:get("placeholder"), template:get("separator")
  local endpoints = template:get("endpoints"):gmatch("(!?)(@?)([^%s=]+)(%S*)")
  for mark, has_openai, name, aliases in endpoints do
    if mark == "" or usable["*"] or usable[name] then
      items[#items + 1] = item:gsub(placeholder, name)
      if has_openai ~= "" then more[#more + 1] = openai:gsub(placeholder, name) end
      for alias in aliases:gmatch("[^=]+") do more[#more + 1] = openai:gsub(placeholder, alias) end
    end
  end
  return {[":status"] = "200", ["content-type"] = template:get("content_type")},
    template:get("head") .. table.concat(items, separator) .. template:get("middle")
      .. table.concat(more, separator) .. template:get("tail")
end

local function decide(handle)
  local rule = rule_of(handle:filterContext():get("rule"))
  local identity, problem, headers = shown(handle, handle:headers())
  if rule.lists then
    if problem ~= nil then return unauthorized(problem, true) end
    identity = identity or by_certificate(handle)
    if identity == nil and next(rule.methods) ~= nil then return unauthorized(NOBODY) end
    return list(handle:filterContext(), identity)
  end
  if rule.keeps then
    local certificate = by_certificate(handle)
    if identity ~= nil then keep(handle, "shown", freeze(identity)) end
    if problem ~= nil then keep(handle, "problem", problem) end
    if certificate ~= nil then keep(handle, "certificate", freeze(certificate)) end
    if not rule.decides then return end
  end
  return judge(handle, headers, rule, identity, problem, by_certificate)
end

envoy_on_request = run(decide)
"""

_AUTHORIZE_SOURCE: Final = r"""
local function thaw(text)
  if text == nil then return nil end
  local caller, label, tier, method, provider, level, words =
    text:match("^" .. ("([^\n]*)\n"):rep(6) .. "([^\n]*)$")
  local scopes = {}
  for scope in words:gmatch("%S+") do scopes[scope] = true end
  return {
    caller = caller, label = label, tier = tier ~= "" and tier or nil, method = method,
    provider = provider ~= "" and provider or nil, level = level, scopes = scopes,
  }
end

local function kept(handle)
  return handle:streamInfo():dynamicMetadata():get("headrace.identity") or {}
end

local function by_certificate(handle) return thaw(kept(handle).certificate) end

local function decide(handle)
  local found = kept(handle)
  local rule = rule_of(handle:filterContext():get("rule"))
  return judge(handle, handle:headers(), rule, thaw(found.shown), found.problem, by_certificate)
end

envoy_on_request = run(decide)
"""

_TEXTS: Final = {
    "NAMED": NAMED,
    "LISTED": LISTED,
    "CALLER": CALLER_HEADER,
    "CREDENTIAL": CREDENTIAL_HEADER,
    "TIER": TIER_HEADER,
    "PRIORITY": PRIORITY_HEADER,
    "ISSUER": ISSUER_HEADER,
}
_TEXTS_SOURCE: Final = "".join(f"local {name} = {quoted(text)}\n" for name, text in _TEXTS.items())
AUTHORIZE_SOURCE: Final = _TEXTS_SOURCE + _SHARED_SOURCE + _AUTHORIZE_SOURCE
_PARTS: Final = (
    _TEXTS_SOURCE,
    _SHARED_SOURCE,
    SHA256_SOURCE,
    BASE64_SOURCE,
    JSON_SOURCE,
    _IDENTIFY_SOURCE,
)


def identify_source(policy: GatewayPolicy) -> str:
    """Return the script with the data of `policy`."""
    access = policy.access
    keys = "\n".join(_key_line(key) for key in policy.keys)
    tables = {
        "KEY_LENGTH": str(KEY_LENGTH),
        "VERIFY": quoted(VERIFY),
        "VERIFY_MS": str(_VERIFY_MS),
        "LEVELS": _levels(access.tiers),
        "PROVIDERS": _list(_provider(jwt, policy) for jwt in access.jwt),
        "CERTIFICATES": _list(_certificate(rule) for rule in access.certificates),
        "KEYS": quoted(keys),
    }
    head = "\n".join(f"local {name} = {value}" for name, value in tables.items())
    return "\n".join((head, *_PARTS))


def _levels(tiers: Iterable[TierSpec]) -> str:
    """Return each tier's priority level in a replica's queue, by name."""
    levels = tier_levels(tiers).items()
    return "{" + ", ".join(f'[{quoted(tier)}] = "{level}"' for tier, level in levels) + "}"


def _key_line(key: ApiKey) -> str:
    """Return `ID DIGEST EXPIRES TIER NAME SCOPES...`, `-` for empty; expiry is rounded down."""
    expires = "-" if key.expires_at is None else str(math.floor(key.expires_at))
    return " ".join((key.id, key.digest, expires, key.tier or "-", key.name, *key.scopes))


def _provider(jwt: JwtSpec, policy: GatewayPolicy) -> str:
    """Return a provider with a digest of its keys: changed keys clear the script's cache."""
    shown = "".join(char if char.isprintable() else "?" for char in jwt.caller_claim)
    fields = {
        "name": quoted(jwt.name),
        "issuer": quoted(jwt.issuer),
        "audiences": _set(jwt.audiences),
        "caller": quoted(jwt.caller_claim),
        "caller_shown": quoted(shown),
        "scope": quoted(jwt.scope_claim),
        "tier": quoted(jwt.tier_claim),
        "skew": str(jwt.clock_skew_s),
        "recheck": str(math.ceil(min(jwt.jwks_cache_s, _LONGEST_RECHECK_S))),
        "keys": quoted(hashlib.sha256(policy.key_sets.get(jwt.name, "").encode()).hexdigest()),
    }
    return _table(fields)


def _certificate(rule: CertificateSpec) -> str:
    """Return a certificate rule; DNS names are compared in lower case."""
    kinds = {"dns": rule.dns.lower(), "uri": rule.uri, "common_name": rule.common_name}
    ((kind, pattern),) = ((kind, text) for kind, text in kinds.items() if text)
    fields = {
        "name": quoted(rule.name),
        "kind": quoted(kind),
        "pattern": quoted(pattern),
        "tier": quoted(rule.tier),
        "scopes": _list(quoted(scope) for scope in rule.scopes),
    }
    return _table(fields)


def _table(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name} = {value}" for name, value in fields.items()) + "}"


def _set(items: Iterable[str]) -> str:
    return "{" + ", ".join(f"[{quoted(item)}] = true" for item in items) + "}"


def _list(items: Iterable[str]) -> str:
    return "{" + ", ".join(items) + "}"
