"""Lua scripts of Envoy: model name of gRPC calls, authentication, renaming for upstreams.

Only routes that name a script run it, and only upstreams' clusters rename: most HTTP requests run
no Lua.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from headrace.core.headers import (
    ENDPOINT_HEADER,
    HOSTED_VERSION_HEADER,
    NAMED_HEADER,
    PAIR_HEADER,
    TARGET_HEADER,
    UNIT_HEADER,
)
from headrace.gateway.scripts_text import BASE64_SOURCE, JSON_SOURCE

SELECT: Final = "select"
INFLATE: Final = "inflate"
REFUSE: Final = "refuse"
CORS: Final = "cors"
UNIT: Final = "unit"
CHECK_NAMES: Final = "check_names"
OPENAI_METADATA: Final = "headrace.openai"
"""Dynamic metadata of a request of OpenAI's API: the place of its model in the body."""
USAGE_METADATA: Final = "headrace.usage"
"""Dynamic metadata of a response of OpenAI's API: its tokens and times, as decimal numbers."""
FALLBACK_METADATA: Final = "headrace.fallback"
"""Dynamic metadata of a request with fallbacks: the endpoint that answers; after the first failed,
the first's cluster and the time until then in microseconds."""

_NAMED_SOURCE: Final = f'local NAMED = "{NAMED_HEADER}"\n'

# The name comes from a protobuf field and may hold any byte. It becomes a header that is sent to
# the replica over HTTP/1.1, so invalid names are refused: a line break would start a second
# request.
_CHOOSE_SOURCE: Final = """
local HEALTH = "/grpc.health.v1.Health/Check"

local function refuse(handle, status, grpc, text)
  local shown = text:gsub("[^\\32-\\126]", "?"):sub(1, 300)
  handle:respond({[":status"] = status, ["grpc-status"] = grpc}, shown)
end

local function choose(handle, model, version)
  local headers = handle:headers()
  if model == nil then return end
  if headers:get(":path") == HEALTH and model == "inference.GRPCInferenceService" then return end
  local unknown = "Request for unknown model: '" .. model .. "'"
  if #model > 128 or not model:find("^%w[%w_.%-]*$") then
    return refuse(handle, "404", "5", unknown .. " is not found")
  end
  if version ~= nil then
    if #version > 18 or not version:find("^%d+$") then
      return refuse(handle, "404", "5", unknown .. " version " .. version .. " is not found")
    end
    model = model .. "~" .. version
  end
  headers:replace("x-model", model)
  handle:clearRouteCache()
  return model
end
"""

SELECT_SOURCE: Final = (
    _CHOOSE_SOURCE
    + """
local function first(fields, ...)
  for _, key in ipairs({...}) do
    local values = fields[key]
    if values ~= nil and values[1] ~= nil and values[1] ~= "" then return values[1] end
  end
end

function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local fields = metadata:get("envoy.filters.http.grpc_field_extraction")
  if fields == nil then return end
  choose(handle, first(fields, "model_name", "name", "service"),
    first(fields, "model_version", "version"))
end
"""
)

# Envoy's extraction does not read compressed messages. Names are at the beginning of a message, so
# inflating a part of it suffices (https://www.rfc-editor.org/rfc/rfc1951): the replica inflates the
# whole. A later second name would be the one that the replica reads: it gets the first in a header,
# and refuses a different one.
INFLATE_SOURCE: Final = (
    _NAMED_SOURCE
    + _CHOOSE_SOURCE
    + """
local PREFIX = 5        -- of a gRPC frame
local READ = 4096       -- bytes of a compressed message that are looked at
local INFLATED = 512    -- bytes that they may become: name and version have 150 at most
local MAX_BLOCKS = 16  -- what makes codes again and again would take the worker's time
local MAX_FIELDS = 2000
local COPIED = 65536

local ORDER = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
local LENGTHS, LENGTH_BITS, DISTANCES, DISTANCE_BITS = {}, {}, {}, {}
do
  local length, distance = 3, 1
  for code = 0, 27 do
    local extra = code < 8 and 0 or math.floor(code / 4) - 1
    LENGTHS[code], LENGTH_BITS[code] = length, extra
    length = length + 2 ^ extra
  end
  LENGTHS[28], LENGTH_BITS[28] = 258, 0
  for code = 0, 29 do
    local extra = code < 4 and 0 or math.floor(code / 2) - 1
    DISTANCES[code], DISTANCE_BITS[code] = distance, extra
    distance = distance + 2 ^ extra
  end
end

local function code_of(lengths, first, last)
  local counts, symbols, places = {}, {}, {[1] = 0}
  for bits = 0, 15 do counts[bits] = 0 end
  for symbol = first, last do counts[lengths[symbol]] = counts[lengths[symbol]] + 1 end
  for bits = 1, 14 do places[bits + 1] = places[bits] + counts[bits] end
  for symbol = first, last do
    local bits = lengths[symbol]
    if bits > 0 then
      symbols[places[bits]] = symbol - first
      places[bits] = places[bits] + 1
    end
  end
  return {counts = counts, symbols = symbols}
end

local FIXED_LITERALS, FIXED_DISTANCES
do
  local lengths = {}
  for symbol = 0, 287 do
    lengths[symbol] = symbol < 144 and 8 or symbol < 256 and 9 or symbol < 280 and 7 or 8
  end
  for symbol = 288, 317 do lengths[symbol] = 5 end
  FIXED_LITERALS, FIXED_DISTANCES = code_of(lengths, 0, 287), code_of(lengths, 288, 317)
end

-- The first bytes of a deflate stream that begins at `at`; an error if it is none.
local function inflate(input, at)
  local buffer, held, out, count = 0, 0, {}, 0

  local function bits(wanted)
    while held < wanted do
      buffer, held, at = buffer + input:byte(at) * 2 ^ held, held + 8, at + 1
    end
    local value = buffer % 2 ^ wanted
    buffer, held = (buffer - value) / 2 ^ wanted, held - wanted
    return value
  end

  local function symbol_of(code)
    local value, first, index = 0, 0, 0
    for length = 1, 15 do
      value = value + bits(1)
      local here = code.counts[length]
      if value - here < first then return code.symbols[index + value - first] end
      index, first, value = index + here, (first + here) * 2, value * 2
    end
    error("no such code")
  end

  local function dynamic_codes()
    local literals, distances, used = bits(5) + 257, bits(5) + 1, bits(4) + 4
    local lengths, filled = {}, 0
    for i = 1, 19 do lengths[ORDER[i]] = i <= used and bits(3) or 0 end
    local code = code_of(lengths, 0, 18)
    lengths = {}
    while filled < literals + distances do
      local symbol, value, times = symbol_of(code), 0, 1
      if symbol < 16 then
        value = symbol
      elseif symbol == 16 then
        value, times = lengths[filled - 1], 3 + bits(2)
      else
        times = symbol == 17 and 3 + bits(3) or 11 + bits(7)
      end
      for _ = 1, times do lengths[filled], filled = value, filled + 1 end
    end
    return code_of(lengths, 0, literals - 1), code_of(lengths, literals, literals + distances - 1)
  end

  local function put(byte)
    count = count + 1
    out[count] = byte
  end

  local is_last, blocks = false, 0
  while not is_last and count < INFLATED do
    is_last, blocks = bits(1) == 1, blocks + 1
    if blocks > MAX_BLOCKS then error("too many blocks") end
    local kind = bits(2)
    if kind == 0 then
      bits(held % 8)
      local length = bits(16)
      bits(16)
      for _ = 1, math.min(length, INFLATED - count) do put(bits(8)) end
    else
      local literals, distances = FIXED_LITERALS, FIXED_DISTANCES
      if kind ~= 1 then literals, distances = dynamic_codes() end
      while count < INFLATED do
        local symbol = symbol_of(literals)
        if symbol == 256 then break end
        if symbol < 256 then
          put(symbol)
        else
          local length = LENGTHS[symbol - 257] + bits(LENGTH_BITS[symbol - 257])
          local code = symbol_of(distances)
          local distance = DISTANCES[code] + bits(DISTANCE_BITS[code])
          for _ = 1, length do put(out[count + 1 - distance] + 0) end
        end
      end
    end
  end
  return string.char(unpack(out))
end

local function deflate_begins(input, encoding)
  if encoding == "deflate" then return 3 end
  local flags, at = input:byte(4), 11
  if flags % 8 >= 4 then at = at + 2 + input:byte(at) + 256 * input:byte(at + 1) end
  for _, flag in ipairs({8, 16}) do
    if flags % (2 * flag) >= flag then at = input:find("\\0", at, true) + 1 end
  end
  return flags % 4 >= 2 and at + 2 or at
end

-- The last of each of the fields 1 and 2; `read(at, count)` returns bytes from 0 on, or fewer. An
-- error for what a reader of protobuf may read in another way than this.
local function names(read, size, is_whole)
  local at, found = 0, {}

  local function varint()
    local value, factor = 0, 1
    for _ = 1, 10 do
      local byte = read(at, 1):byte()
      if byte == nil then return nil end
      at, value, factor = at + 1, value + byte % 128 * factor, factor * 128
      if byte < 128 then return value end
    end
    error("a number of more than ten bytes")
  end

  for _ = 1, MAX_FIELDS do
    if at == size then return found[1], found[2] end
    local tag = varint()
    local kind, length = tag and tag % 8, 0
    if kind == 2 then length = varint()
    elseif kind == 0 then length = varint() and 0
    elseif kind == 1 then length = 8
    elseif kind == 5 then length = 4
    elseif kind ~= nil then error("a wire type that is none of a field")
    end
    if length == nil or kind == nil or at + length > size then
      if is_whole then error("the message is cut short") end
      return found[1], found[2]
    end
    local field = math.floor(tag / 8)
    if kind == 2 and field <= 2 then
      found[field] = length > 0 and read(at, math.min(length, 200)) or nil
    end
    at = at + length
  end
  error("too many fields")
end

local function names_of(body, size, encoding)
  if body:getBytes(0, 1) == "\\1" then
    local input = body:getBytes(PREFIX, math.min(size, READ))
    local text = inflate(input, deflate_begins(input, encoding))
    return names(function(at, count) return text:sub(at + 1, at + count) end, #text, false)
  end
  local text = size <= COPIED and body:getBytes(PREFIX, size)
  return names(function(at, count)
    if text then return text:sub(at + 1, at + count) end
    return at < size and body:getBytes(PREFIX + at, math.min(count, size - at)) or ""
  end, size, true)
end

function envoy_on_request(handle)
  local body = handle:body()
  local size = (body == nil and 0 or body:length()) - PREFIX
  if size <= 0 then return end
  local is_compressed = body:getBytes(0, 1) == "\\1"
  local encoding = handle:headers():get("grpc-encoding")
  if is_compressed and encoding ~= "gzip" and encoding ~= "deflate" then
    return refuse(handle, "501", "12", "messages compressed with '" .. (encoding or "") ..
      "' are not supported: send gzip, deflate or identity")
  end
  local is_read, model, version = pcall(names_of, body, size, encoding)
  if not is_read then
    return refuse(handle, "400", "3", "failed to parse the request: it is no message" ..
      (is_compressed and " in " .. encoding .. ", or does not begin with its model's name" or ""))
  end
  model = choose(handle, model, version)
  if is_compressed then handle:headers():replace(NAMED, model or "") end
end
"""
)

REFUSE_SOURCE: Final = """
function envoy_on_request(handle)
  local headers = handle:headers()
  local model, version = (headers:get("x-model") or ""):match("^([^~]+)~?(.*)$")
  local grpc = (headers:get("content-type") or ""):find("^application/grpc")
  if model == nil and not grpc then
    local path = headers:get(":path"):match("^[^?#]*")
    model, version = path:match("^/v%d/models/([^/]*)/versions/([^/]*)")
    if model == nil then model = path:match("^/v%d/models/([^/:]*)") end
  end
  local which = "'" .. (model or ""):sub(1, 200) .. "'"
  if version ~= nil and version ~= "" then which = which .. " version " .. version:sub(1, 40) end
  local reply = {[":status"] = "404"}
  if grpc then reply["grpc-status"] = "5" end
  handle:respond(reply, "Request for unknown model: " .. which .. " is not found")
end
"""

# Servers behind CGI and WSGI read `x_user` and `x-user` as one header, and nginx drops the first.
CHECK_NAMES_SOURCE: Final = (
    _NAMED_SOURCE
    + """
function envoy_on_request(handle)
  local refused
  for name in pairs(handle:headers()) do
    if name:find("_", 1, true) then refused = name end
  end
  if handle:headers():get(NAMED) ~= nil then
    return handle:respond({[":status"] = "501", ["grpc-status"] = "12"},
      "compressed messages are not supported by endpoints with an upstream: send identity")
  end
  if refused == nil then return end
  local shown = refused:gsub("[^%w_.-]", "?"):sub(1, 100)
  handle:respond({[":status"] = "400", ["grpc-status"] = "3"},
    "header '" .. shown .. "' is refused: the server of this endpoint may take an underscore in a "
    .. "header's name for a dash; write a dash")
end
"""
)

# Envoy's own filter leaves out routes with a direct response: a page could not read why an endpoint
# is not ready, nor the list of endpoints. An origin pattern is `https://*.DOMAIN`, or `*`.
CORS_SOURCE: Final = """
local rules = {}
local function rule_of(text)
  local rule = rules[text]
  if rule ~= nil then return rule end
  rule = {exact = {}, patterns = {}}
  for origin in text:gmatch("%S+") do
    local scheme, domain = origin:match("^(.+//)%*(%..+)$")
    if scheme ~= nil then
      rule.patterns[#rule.patterns + 1] = {scheme, domain}
    else
      rule.exact[origin] = true
    end
  end
  rules[text] = rule
  return rule
end

local function is_allowed(rule, origin)
  if rule.exact["*"] or rule.exact[origin] then return true end
  for _, pattern in ipairs(rule.patterns) do
    local scheme, domain = pattern[1], pattern[2]
    local host = origin:sub(1, #scheme) == scheme and origin:sub(#scheme + 1)
    if host and #host > #domain and host:sub(-#domain) == domain then
      return host:sub(1, -#domain - 1):find("^[%w-][%w.-]*$") ~= nil
    end
  end
  return false
end

function envoy_on_request(handle)
  local headers, context = handle:headers(), handle:filterContext()
  local origin = headers:get("origin")
  if origin == nil or not is_allowed(rule_of(context:get("origins")), origin) then return end
  if headers:get(":method") == "OPTIONS" and headers:get("access-control-request-method") then
    return handle:respond({
      [":status"] = "204",
      ["access-control-allow-origin"] = origin,
      ["access-control-allow-methods"] = context:get("methods"),
      ["access-control-allow-headers"] = context:get("request_headers"),
      ["access-control-max-age"] = context:get("max_age"),
      ["vary"] = "origin",
    })
  end
  handle:streamInfo():dynamicMetadata():set("headrace.cors", "origin", origin)
end

function envoy_on_response(handle)
  local allowed = handle:streamInfo():dynamicMetadata():get("headrace.cors")
  if allowed == nil then return end
  local headers = handle:headers()
  headers:replace("access-control-allow-origin", allowed.origin)
  headers:replace("access-control-expose-headers",
    handle:filterContext():get("response_headers"))
  headers:add("vary", "origin")
end
"""

# Numbers of JSON stay as they are written: an id may have more digits than a number in Lua.
_EXACT_NUMBERS_SOURCE: Final = """
local to_number = tonumber
local function tonumber(text, base) return base and to_number(text, base) or text end
"""

# The payload of a bearer token is read, not verified: callers without a valid token are refused (or
# not) elsewhere, and a forged claim only chooses an arm. Only its outermost object counts.
# Characters other than printable ASCII become %XX: the value is sent as a header.
UNIT_SOURCE: Final = (
    f'local UNIT = "{UNIT_HEADER}"\n'
    + BASE64_SOURCE
    + _EXACT_NUMBERS_SOURCE
    + JSON_SOURCE
    + """
local LONGEST = 256

local function claim(headers, name)
  local header = headers:get("authorization") or ""
  local payload = header:match("^[Bb]earer%s+[^.%s]+%.([^.%s]+)%.[^.%s]*%s*$")
  if payload == nil or #payload > 16384 then return nil end
  local reads, claims = pcall(function() return json(base64url(payload)) end)
  if not reads or type(claims) ~= "table" then return nil end
  local value = claims[name]
  return value ~= nil and type(value) ~= "table" and tostring(value) or nil
end

local function cookie(headers, name)
  for i = 0, headers:getNumValues("cookie") - 1 do
    for pair in headers:getAtIndex("cookie", i):gmatch("[^;]+") do
      local key, value = pair:match("^%s*([^=]-)%s*=%s*(.-)%s*$")
      if key == name and value ~= "" then return value end
    end
  end
end

local function escape(char)
  return string.format("%%%02X", char:byte())
end

function envoy_on_request(handle)
  local headers, wanted = handle:headers(), handle:filterContext()
  if headers:get(UNIT) ~= nil then return end
  local unit
  if wanted:get("cookie") ~= nil then
    unit = cookie(headers, wanted:get("cookie"))
  else
    unit = claim(headers, wanted:get("claim"))
  end
  if unit == nil or unit == "" then return end
  headers:replace(UNIT, (unit:sub(1, LONGEST):gsub("[^\\33-\\126]", escape)))
  handle:clearRouteCache()
end
"""
)

# Runs for one upstream, after the split chose it: the model may have another name on each arm. It
# runs again when the request is retried, on headers that it has already changed: so it stores the
# original path. API keys are for this gateway. `hr_` inside another token, such as a JWT, starts no
# key.
_RENAME_SOURCE: Final = """
local TARGETS, TARGET, OPENAI = %s, "%s", "%s"

local function starts(path, prefix)
  return path:sub(1, #prefix) == prefix
end

local function renamed(path, target)
  local name = target.endpoint
  for _, kind in ipairs({"/v2/models/", "/v1/models/"}) do
    if starts(path, kind .. name) then
      local rest = path:sub(#kind + #name + 1)
      if kind == "/v2/models/" then rest = rest:gsub("^/versions/%%d+", "", 1) end
      if rest == "" or rest:find("^[/:?]") then return kind .. target.model .. rest end
    end
  end
  return path
end

function envoy_on_request(handle)
  local headers, metadata = handle:headers(), handle:streamInfo():dynamicMetadata()
  local target = TARGETS[""] or TARGETS[headers:get(TARGET)]
  local before = metadata:get("headrace.rename")
  local path = before ~= nil and before["path"] or headers:get(":path")
  if before == nil then metadata:set("headrace.rename", "path", path) end
  headers:replace(":path", target.prefix .. renamed(path, target))
  if target.authority ~= "" then headers:replace(":authority", target.authority) end
  headers:remove("x-api-key")
  local authorization = headers:get("authorization")
  if authorization ~= nil and authorization:find("%%f[%%w_.-][hH][rR]_") then
    headers:remove("authorization")
  end
  local named = metadata:get(OPENAI)
  if named ~= nil and named.first ~= nil then
    local body = handle:body()
    local text = body:getBytes(0, body:length())
    local changed = text:sub(1, named.first) .. target.model .. text:sub(named.last)
    handle:headers():replace("content-length", tostring(body:setBytes(changed)))
  end
end
"""

# What is for the first server only: the caller's `authorization` may be meant for it.
_OF_FIRST: Final = ("authorization", HOSTED_VERSION_HEADER, PAIR_HEADER)
_FALLBACK_SOURCE: Final = """
local FIRST, FALLBACK, ENDPOINT, rename = %s, "%s", "%s", envoy_on_request

function envoy_on_request(handle)
  local headers, metadata = handle:headers(), handle:streamInfo():dynamicMetadata()
  local cluster = headers:get(TARGET)
  metadata:set(FALLBACK, "endpoint", TARGETS[cluster].endpoint)
  if cluster ~= FIRST then
    for _, name in ipairs({%s}) do headers:remove(name) end
    if FIRST ~= "" and metadata:get(FALLBACK).first == nil then
      local now = tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
      metadata:set(FALLBACK, "first", FIRST)
      metadata:set(FALLBACK, "us", string.format("%%.0f", now - metadata:get(OPENAI).began))
    end
  end
  rename(handle)
  headers = handle:headers()
  headers:remove(TARGET)
  local own = TARGETS[cluster].key
  if own ~= "" then
    headers:remove("authorization")
    local key = headers:get(own)
    if key ~= nil then headers:add("authorization", key) end
  end
  for _, target in pairs(TARGETS) do
    if target.key ~= "" then headers:remove(target.key) end
  end
end

function envoy_on_response(handle)
  local endpoint = handle:streamInfo():dynamicMetadata():get(FALLBACK).endpoint
  handle:headers():replace(ENDPOINT, endpoint)
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameTarget:
    """Server of an endpoint, and the names by which it knows the model."""

    endpoint: str
    model: str = ""
    """Name of the model there; empty for the endpoint's."""
    prefix: str = ""
    """Path before that of every request."""
    authority: str = ""
    """Host header; empty for the caller's."""
    key: str = ""
    """Header with the server's own API key; empty for none."""

    def lua(self) -> str:
        """Return the target as a table in Lua."""
        fields = {**asdict(self), "model": self.model or self.endpoint}
        return "{" + ", ".join(f"{key} = {quoted(text)}" for key, text in fields.items()) + "}"


def rename_source(target: RenameTarget) -> str:
    """Return the script for one upstream: the model's name and path there."""
    return _rename_source({"": target})


def fallback_source(targets: Mapping[str, RenameTarget], first: str) -> str:
    """Return the script for the servers of an endpoint and of its fallbacks, by their clusters.

    `TARGET_HEADER` names the cluster of the server that the request is sent to.

    Args:
        first: Cluster of the endpoint's own servers; empty if it has none.
    """
    headers = ", ".join(quoted(name) for name in _OF_FIRST)
    values = (quoted(first), FALLBACK_METADATA, ENDPOINT_HEADER, headers)
    return _rename_source(targets) + _FALLBACK_SOURCE % values


def _rename_source(targets: Mapping[str, RenameTarget]) -> str:
    items = (f"[{quoted(cluster)}] = {target.lua()}" for cluster, target in targets.items())
    return _RENAME_SOURCE % ("{" + ", ".join(items) + "}", TARGET_HEADER, OPENAI_METADATA)


def quoted(text: str) -> str:
    """Return `text` as a Lua string literal."""
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'
