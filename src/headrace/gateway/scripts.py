"""The Lua scripts that Envoy runs: which model a gRPC call names, who calls, how upstreams say it.

Only routes that name a script run it, and only upstreams' clusters rename: most HTTP requests never
enter Lua.
"""

from typing import Final

SELECT: Final = "select"
REFUSE: Final = "refuse"
UNIT: Final = "unit"
CHECK_NAMES: Final = "check_names"

# The name comes from a protobuf field and may hold any byte. It becomes a header that travels to
# the replica over HTTP/1.1, so anything but a valid name stops here: a line break in it would
# start a second request.
SELECT_SOURCE: Final = """
local HEALTH = "/grpc.health.v1.Health/Check"

local function first(fields, ...)
  for _, key in ipairs({...}) do
    local values = fields[key]
    if values ~= nil and values[1] ~= nil and values[1] ~= "" then return values[1] end
  end
end

local function not_found(handle, text)
  local shown = text:gsub("[^\\32-\\126]", "?"):sub(1, 300)
  handle:respond({[":status"] = "404", ["grpc-status"] = "5"}, shown)
end

function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local fields = metadata:get("envoy.filters.http.grpc_field_extraction")
  if fields == nil then return end
  local headers = handle:headers()
  local model = first(fields, "model_name", "name", "service")
  if model == nil then return end
  if headers:get(":path") == HEALTH and model == "inference.GRPCInferenceService" then return end
  if #model > 128 or not model:find("^%w[%w_.%-]*$") then
    return not_found(handle, "Request for unknown model: '" .. model .. "' is not found")
  end
  local version = first(fields, "model_version", "version")
  if version ~= nil then
    if #version > 18 or not version:find("^%d+$") then
      return not_found(
        handle,
        "Request for unknown model: '" .. model .. "' version " .. version .. " is not found")
    end
    model = model .. "~" .. version
  end
  headers:replace("x-model", model)
  handle:clearRouteCache()
end
"""

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
CHECK_NAMES_SOURCE: Final = """
function envoy_on_request(handle)
  local refused
  for name in pairs(handle:headers()) do
    if name:find("_", 1, true) then refused = name end
  end
  if refused == nil then return end
  local shown = refused:gsub("[^%w_.-]", "?"):sub(1, 100)
  handle:respond({[":status"] = "400", ["grpc-status"] = "3"},
    "header '" .. shown .. "' is refused: the server of this endpoint may take an underscore in a "
    .. "header's name for a dash; write a dash")
end
"""

# The payload of a bearer token is read, not verified: whoever holds no valid token is refused (or
# not) elsewhere, and a forged claim chooses nothing but an arm. Only its outermost object counts.
# What is not printable ASCII becomes %XX: the value travels as a header.
UNIT_SOURCE: Final = """
local LONGEST = 256

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
local DIGITS = {}
for i = 1, #ALPHABET do DIGITS[ALPHABET:byte(i)] = i - 1 end

local function decode(text)
  local bytes, buffer, bits = {}, 0, 0
  for i = 1, #text do
    local digit = DIGITS[text:byte(i)]
    if digit == nil then return nil end
    buffer, bits = buffer * 64 + digit, bits + 6
    if bits >= 8 then
      bits = bits - 8
      local byte = math.floor(buffer / 2 ^ bits)
      bytes[#bytes + 1] = string.char(byte)
      buffer = buffer - byte * 2 ^ bits
    end
  end
  return table.concat(bytes)
end

local function end_of_string(json, start)
  local at = start
  while true do
    at = json:find('["\\\\]', at + 1)
    if at == nil or json:sub(at, at) == '"' then return at end
    at = at + 1
  end
end

local function value_at(json, at)
  if json:sub(at, at) ~= '"' then
    local plain = json:match("^[%w.+-]+", at)
    return plain ~= "null" and plain or nil
  end
  local stop = end_of_string(json, at)
  return stop and json:sub(at + 1, stop - 1)
end

local function member(json, name)
  local depth, at = 0, 1
  while true do
    local start = json:find('[{}%[%]"]', at)
    if start == nil then return nil end
    local found = json:sub(start, start)
    at = start + 1
    if found == '"' then
      local stop = end_of_string(json, start)
      if stop == nil then return nil end
      at = stop + 1
      if depth == 1 and json:sub(start + 1, stop - 1) == name then
        local _, colon = json:find("^%s*:%s*", at)
        if colon ~= nil then return value_at(json, colon + 1) end
      end
    else
      depth = depth + ((found == "{" or found == "[") and 1 or -1)
    end
  end
end

local function claim(headers, name)
  local header = headers:get("authorization") or ""
  local payload = header:match("^[Bb]earer%s+[^.%s]+%.([^.%s]+)%.[^.%s]*%s*$")
  local json = payload and #payload <= 16384 and decode(payload)
  return json and member(json, name)
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
  if headers:get("x-headrace-unit") ~= nil then return end
  local unit
  if wanted:get("cookie") ~= nil then
    unit = cookie(headers, wanted:get("cookie"))
  else
    unit = claim(headers, wanted:get("claim"))
  end
  if unit == nil or unit == "" then return end
  headers:replace("x-headrace-unit", (unit:sub(1, LONGEST):gsub("[^\\33-\\126]", escape)))
  handle:clearRouteCache()
end
"""

# Runs on the way to one upstream, after the split chose it: an endpoint's arms may differ in what
# the model is called there. It runs again when the request is tried again, and then on headers that
# it has changed before: so the path that it began with is kept.
# API keys are for this gateway. `hr_` inside another token, such as a JWT, begins none.
_RENAME_SOURCE: Final = """
local NAME, MODEL, PREFIX, AUTHORITY = %s, %s, %s, %s

local function starts(path, prefix)
  return path:sub(1, #prefix) == prefix
end

local function renamed(path)
  for _, kind in ipairs({"/v2/models/", "/v1/models/"}) do
    if starts(path, kind .. NAME) then
      local rest = path:sub(#kind + #NAME + 1)
      if kind == "/v2/models/" then rest = rest:gsub("^/versions/%%d+", "", 1) end
      if rest == "" or rest:find("^[/:?]") then return kind .. MODEL .. rest end
    end
  end
  return path
end

function envoy_on_request(handle)
  local headers, metadata = handle:headers(), handle:streamInfo():dynamicMetadata()
  local before = metadata:get("headrace.rename")
  local path = before ~= nil and before["path"] or headers:get(":path")
  if before == nil then metadata:set("headrace.rename", "path", path) end
  headers:replace(":path", PREFIX .. renamed(path))
  headers:replace(":authority", AUTHORITY)
  headers:remove("x-api-key")
  local authorization = headers:get("authorization")
  if authorization ~= nil and authorization:find("%%f[%%w_.-][hH][rR]_") then
    headers:remove("authorization")
  end
end
"""


def rename_source(*, endpoint: str, model: str, prefix: str, authority: str) -> str:
    """The script for one upstream: what the endpoint is called there, and where it lies."""
    values = (endpoint, model or endpoint, prefix, authority)
    return _RENAME_SOURCE % tuple(quoted(value) for value in values)


def quoted(text: str) -> str:
    """`text` as a Lua string, whatever is in it."""
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'
