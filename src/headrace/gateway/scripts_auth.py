"""The Lua scripts that say who calls, and whether this caller may.

A script that fails lets a request pass in Envoy, so each runs under `pcall` and refuses then. What
is told to those who are nobody is the same for every model, known or not.
"""

import math
from collections.abc import Iterable
from typing import Final

from headrace.core.access_settings import CertificateRule, JwtSettings
from headrace.gateway.policy import ApiKey, GatewayPolicy
from headrace.gateway.scripts import quoted

IDENTIFY: Final = "identify"
AUTHORIZE: Final = "authorize"
KEY_LENGTH: Final = 57
"""`hr_`, ten characters of id, an underscore, 43 of secret."""

# A rule is `ENDPOINT|VERSION|METHODS`: few texts, so each is taken apart once. An identity is a
# table: caller, label, tier, method, provider (of a token) and its set of scopes.
_SHARED_SOURCE: Final = """
local NOBODY = "Who calls? Send an API key ('x-api-key: hr_...') or a token ('authorization: "
  .. "Bearer ...'), or connect with a client certificate that this gateway knows"

local parsed = {}
local function rule_of(text)
  local rule = parsed[text]
  if rule ~= nil then return rule end
  local endpoint, version, methods = text:match("^([^|]*)|([^|]*)|(.*)$")
  rule = {endpoint = endpoint, methods = {}}
  if endpoint ~= "" then
    rule.scope = "infer:" .. endpoint
    rule.exact = rule.scope .. ":" .. (version ~= "" and version or "-")
    rule.needs = rule.scope .. (version ~= "" and ":" .. version or "")
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
  local more = is_invalid and ', error="invalid_token"' or ""
  local headers = {[":status"] = "401", ["www-authenticate"] = 'Bearer realm="headrace"' .. more}
  return headers, text
end

-- What to answer; nothing if the caller may go on, who is then named in the headers.
local function judge(headers, rule, identity, problem, certificate)
  if identity == nil or not takes(rule, identity) then
    local shown = rule.methods.certificate and certificate ~= nil and certificate() or nil
    if shown ~= nil and (problem == nil or not rule.takes_headers) then
      identity = shown
    elseif problem ~= nil then
      return unauthorized(problem, true)
    elseif identity ~= nil then
      return unauthorized("'" .. identity.label .. "' is not how callers show here who they are")
    else
      return unauthorized(NOBODY)
    end
  end
  local scopes = identity.scopes
  if rule.scope ~= nil and not (scopes["infer:*"] or scopes[rule.scope] or scopes[rule.exact]) then
    local header = 'Bearer realm="headrace", error="insufficient_scope", scope="%s"'
    local text = "'%s' may not call endpoint '%s': it needs the scope '%s'"
    return {[":status"] = "403", ["www-authenticate"] = header:format(rule.needs)},
      text:format(identity.caller, rule.endpoint, rule.needs)
  end
  headers:replace("x-headrace-caller", identity.caller)
  headers:replace("x-headrace-credential", identity.label)
  if identity.tier ~= nil then headers:replace("x-headrace-tier", identity.tier) end
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

_SHA256_SOURCE: Final = """
local band, bxor, bnot = bit.band, bit.bxor, bit.bnot
local ror, rshift, tobit = bit.ror, bit.rshift, bit.tobit

local K, INITIAL = {}, {}
do
  local count, candidate = 0, 2
  local function fraction(value) return tobit(math.floor((value % 1) * 2 ^ 32)) end
  while count < 64 do
    local is_prime = true
    for divisor = 2, candidate ^ 0.5 do
      if candidate % divisor == 0 then is_prime = false break end
    end
    if is_prime then
      count = count + 1
      K[count] = fraction(candidate ^ (1 / 3))
      if count <= 8 then INITIAL[count] = fraction(candidate ^ 0.5) end
    end
    candidate = candidate + 1
  end
end

local words = {}
local function sha256(text)
  local bits = #text * 8
  local high, low = math.floor(bits / 2 ^ 32), bits % 2 ^ 32
  local padded = text .. "\\128" .. ("\\0"):rep(-(#text + 9) % 64)
  for _, word in ipairs({high, low}) do
    padded = padded .. string.char(
      math.floor(word / 2 ^ 24) % 256, math.floor(word / 2 ^ 16) % 256,
      math.floor(word / 2 ^ 8) % 256, word % 256)
  end
  local state = {unpack(INITIAL)}
  for start = 1, #padded, 64 do
    for i = 1, 16 do
      local a, b, c, d = padded:byte(start + 4 * i - 4, start + 4 * i - 1)
      words[i] = tobit(((a * 256 + b) * 256 + c) * 256 + d)
    end
    for i = 17, 64 do
      local x, y = words[i - 15], words[i - 2]
      local s0 = bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
      local s1 = bxor(ror(y, 17), ror(y, 19), rshift(y, 10))
      words[i] = tobit(words[i - 16] + s0 + words[i - 7] + s1)
    end
    local a, b, c, d, e, f, g, h = unpack(state)
    for i = 1, 64 do
      local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
      local t1 = h + s1 + bxor(band(e, f), band(bnot(e), g)) + K[i] + words[i]
      local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
      local t2 = s0 + bxor(band(a, b), band(a, c), band(b, c))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
    end
    for i, word in ipairs({a, b, c, d, e, f, g, h}) do state[i] = tobit(state[i] + word) end
  end
  for i = 1, 8 do state[i] = bit.tohex(state[i]) end
  return table.concat(state)
end
"""

# Of several `authorization` or `x-api-key` headers Envoy makes one, with commas, which no key and
# no token has: they are refused. `jwt_authn` remembers tokens and then looks at their end with a
# skew of its own, so that is checked here. A verified key is remembered until the keys change.
_IDENTIFY_SOURCE: Final = """
local LONGEST = 128
local KEPT_TOKENS = 1000

local function set_of(list)
  local set = {}
  for _, word in ipairs(list) do set[word] = true end
  return set
end

local function escape(char) return string.format("%%%02X", char:byte()) end

-- Printable, one to one, and short enough for a header that ends in logs.
local function printable(text)
  text = text:gsub("[^\\33-\\36\\38-\\126]", escape)
  if #text <= LONGEST then return text end
  return text:sub(1, LONGEST - 17) .. "~" .. sha256(text):sub(1, 16)
end

local known_tiers = set_of(TIERS)
local function tier_of(value)
  return type(value) == "string" and known_tiers[value] and value or nil
end

local lines, verified = {}, {}
for id, line in KEYS:gmatch("([^ \\n]+) ([^\\n]+)") do lines[id] = line end

local WRONG_KEY = "Unknown, expired or revoked API key"
local function by_key(key)
  local entry = verified[key]
  if entry == nil then
    local line = #key == KEY_LENGTH and lines[key:match("^hr_(%w+)_[%w_-]+$")]
    if not line then return nil, WRONG_KEY end
    local digest, expires, tier, name, scopes = line:match("^(%S+) (%S+) (%S+) (%S+) ?(.*)$")
    if sha256(key) ~= digest then return nil, WRONG_KEY end
    entry = {
      caller = name, label = "key:" .. name, method = "key", tier = tier_of(tier), scopes = {},
      expires = tonumber(expires) or math.huge,
    }
    for scope in scopes:gmatch("%S+") do entry.scopes[scope] = true end
    verified[key] = entry
  end
  if os.time() >= entry.expires then return nil, WRONG_KEY end
  return entry
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
    for _, scope in ipairs(found) do
      if type(scope) == "string" then scopes[scope] = true end
    end
  end
  return {
    caller = printable(provider.name .. "/" .. caller), label = "jwt:" .. provider.name,
    method = "jwt", provider = provider.name, tier = tier_of(claims[provider.tier]),
    scopes = scopes, expires = claims.exp + provider.skew,
  }
end

local UNKNOWN_ISSUER = "Jwt issuer is not configured"
local function by_token(handle)
  local found = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.jwt_authn")
  if found == nil then return nil, "This gateway knows nobody who issues tokens" end
  local reason
  for _, provider in ipairs(PROVIDERS) do
    local claims = found[provider.name]
    if type(claims) == "table" then
      local identity, problem = identity_of(provider, claims)
      if identity ~= nil and os.time() > identity.expires then
        return nil, "Jwt is expired"
      end
      return identity, problem
    end
    local failure = found["!" .. provider.name]
    local text = type(failure) == "table" and failure.message
    if type(text) == "string" and (reason == nil or text ~= UNKNOWN_ISSUER) then reason = text end
  end
  return nil, reason or "This gateway cannot verify the token"
end

-- What a request shows in its headers: who that is, or what is wrong with it.
local function shown(handle, headers)
  local key, authorization = headers:get("x-api-key"), headers:get("authorization")
  if key == nil then
    if authorization == nil then return nil end
    key = authorization:match("^[Bb]earer ([%w%-._~+/]+=*)$")
    if key == nil then
      return nil, "The authorization header is not one 'Bearer TOKEN' or 'Bearer hr_...'"
    end
    if key:sub(1, 3) ~= "hr_" then return by_token(handle) end
  elseif authorization ~= nil then
    return nil, "Two credentials: send either x-api-key or authorization"
  end
  return by_key(key)
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
        method = "certificate", tier = tier_of(rule.tier), scopes = rule.set,
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
    identity.provider or "", table.concat(scopes, " "),
  }, "\\n")
end

local function decide(handle)
  local context, headers = handle:filterContext(), handle:headers()
  local text = context:get("rule")
  local identity, problem = shown(handle, headers)
  if context:get("keep") == nil then
    local function certificate() return by_certificate(handle) end
    return judge(headers, rule_of(text), identity, problem, certificate)
  end
  local certificate = by_certificate(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  if identity ~= nil then metadata:set("headrace.identity", "shown", freeze(identity)) end
  if problem ~= nil then metadata:set("headrace.identity", "problem", problem) end
  if certificate ~= nil then
    metadata:set("headrace.identity", "certificate", freeze(certificate))
  end
  if text ~= nil then
    return judge(headers, rule_of(text), identity, problem, function() return certificate end)
  end
end

envoy_on_request = run(decide)
"""

_AUTHORIZE_SOURCE: Final = """
local function thaw(text)
  if text == nil then return nil end
  local caller, label, tier, method, provider, words =
    text:match("^([^\\n]*)\\n([^\\n]*)\\n([^\\n]*)\\n([^\\n]*)\\n([^\\n]*)\\n([^\\n]*)$")
  local scopes = {}
  for scope in words:gmatch("%S+") do scopes[scope] = true end
  return {
    caller = caller, label = label, tier = tier ~= "" and tier or nil, method = method,
    provider = provider ~= "" and provider or nil, scopes = scopes,
  }
end

local function decide(handle)
  local found = handle:streamInfo():dynamicMetadata():get("headrace.identity") or {}
  local rule = rule_of(handle:filterContext():get("rule"))
  local function certificate() return thaw(found.certificate) end
  return judge(handle:headers(), rule, thaw(found.shown), found.problem, certificate)
end

envoy_on_request = run(decide)
"""

AUTHORIZE_SOURCE: Final = _SHARED_SOURCE + _AUTHORIZE_SOURCE


def identify_source(policy: GatewayPolicy) -> str:
    """The script with what `policy` knows in it."""
    access = policy.access
    keys = "\n".join(_key_line(key) for key in policy.keys)
    tables = {
        "KEY_LENGTH": str(KEY_LENGTH),
        "TIERS": _list(quoted(tier.name) for tier in access.tiers),
        "PROVIDERS": _list(_provider(jwt) for jwt in access.jwt),
        "CERTIFICATES": _list(_certificate(rule) for rule in access.certificates),
        "KEYS": quoted(keys),
    }
    head = "\n".join(f"local {name} = {value}" for name, value in tables.items())
    return f"{head}\n{_SHARED_SOURCE}{_SHA256_SOURCE}{_IDENTIFY_SOURCE}"


def _key_line(key: ApiKey) -> str:
    """`ID DIGEST EXPIRES TIER NAME SCOPES...`, a minus sign for nothing; never later than meant."""
    expires = "-" if key.expires_at is None else str(math.floor(key.expires_at))
    return " ".join((key.id, key.digest, expires, key.tier or "-", key.name, *key.scopes))


def _provider(jwt: JwtSettings) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in jwt.caller_claim)
    fields = {
        "name": quoted(jwt.name),
        "caller": quoted(jwt.caller_claim),
        "caller_shown": quoted(shown),
        "scope": quoted(jwt.scope_claim),
        "tier": quoted(jwt.tier_claim),
        "skew": str(jwt.clock_skew_s),
    }
    return _table(fields)


def _certificate(rule: CertificateRule) -> str:
    """DNS names are compared in lower case."""
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


def _list(items: Iterable[str]) -> str:
    return "{" + ", ".join(items) + "}"
