"""The two Lua scripts that Envoy runs: one reads which model a gRPC call names, one refuses it.

Only routes that name a script run it, so an HTTP request never enters Lua.
"""

from typing import Final

SELECT: Final = "select"
REFUSE: Final = "refuse"

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
  handle:respond({[":status"] = "404", ["grpc-status"] = "5"}, text:gsub("%c", "?"):sub(1, 300))
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
    headers:replace("x-model-version", version)
  end
  headers:replace("x-model", model)
  handle:clearRouteCache()
end
"""

REFUSE_SOURCE: Final = """
function envoy_on_request(handle)
  local headers = handle:headers()
  local model, version = headers:get("x-model"), headers:get("x-model-version")
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
