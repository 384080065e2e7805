"""Lua scripts of OpenAI's API: the model of a request's body, and the tokens of its answer.

Only routes of OpenAI's API run them. They read bodies without parsing them whole: strings, which
are most of a body, are skipped.
"""

from typing import Final

from headrace.core.headers import SHADOW_HEADER, TIMEOUT_HEADER
from headrace.gateway.scripts import OPENAI_METADATA, USAGE_METADATA

PREFIX_STATE: Final = "headrace.prefix"
"""Filter state with the beginning of a request's prompt, by which replicas are chosen."""

OPENAI: Final = "openai"
"""Name of the script that reads the model's name, and measures the answer."""

_MEMBERS_SOURCE: Final = r"""
local function past_string(text, at)
  while true do
    at = text:find('["\\]', at + 1)
    if text:byte(at) == 34 then return at + 1 end
    at = at + 1
  end
end

-- The position after the value that begins at `at`; an error if it does not end.
local function past_value(text, at)
  local char = text:byte(at)
  if char == 34 then return past_string(text, at) end
  if char ~= 123 and char ~= 91 then return (text:find("[,}%s]", at + 1)) end
  local depth = 0
  repeat
    at = text:find('[{}%[%]"]', at)
    char = text:byte(at)
    if char == 34 then
      at = past_string(text, at)
    else
      depth = depth + ((char == 123 or char == 91) and 1 or -1)
      at = at + 1
    end
  until depth == 0
  return at
end

-- First and last position of each member's value, by its name, of the object at `at`; an error if
-- it is none. A name that occurs twice, or that has an escape, is one that a server may read
-- otherwise.
local function members(text, at)
  local found = {}
  at = text:match("^[ \t\r\n]*{[ \t\r\n]*()", at)
  if text:byte(at) == 125 then return found, at + 1 end
  while true do
    assert(text:byte(at) == 34)
    local stop = past_string(text, at)
    local name = text:sub(at + 1, stop - 2)
    assert(found[name] == nil and not name:find("\\", 1, true))
    local value = text:match("^[ \t\r\n]*:[ \t\r\n]*()", stop)
    stop = past_value(text, value)
    found[name] = {value, stop - 1}
    local char, after = text:match("^[ \t\r\n]*([,}])[ \t\r\n]*()", stop)
    if char == "}" then return found, after end
    at = after
  end
end
"""

# The answer's usage is asked for where a caller of a stream did not, and its event is then removed.
# `"usage":` is no part of a string: its quotes would be escaped.
OPENAI_SOURCE: Final = (
    f'local METADATA, USAGE = "{OPENAI_METADATA}", "{USAGE_METADATA}"\n'
    f'local SHADOW, TIMEOUT = "{SHADOW_HEADER}", "{TIMEOUT_HEADER}"\n'
    f'local PREFIX, LONGEST_PREFIX = "{PREFIX_STATE}", 4096\n'
    + _MEMBERS_SOURCE
    + r"""
local LONGEST_USAGE = 4096
local TOLD_EACH = 8
local LONGEST_MS = 86400000
local OPTIONS = '{"include_usage":true}'
local CAN_STREAM = {["/v1/chat/completions"] = true, ["/v1/completions"] = true}

local function keep(handle, name, value)
  handle:streamInfo():dynamicMetadata():set(METADATA, name, value)
end

local function now(handle)
  return tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
end

local function refuse(handle, status, text)
  handle:respond({[":status"] = status}, text)
end

-- The positions around the model's name in a form with files: of the part that is called `model`.
-- Parts begin behind a boundary only: an uploaded file may hold a form, too.
local function in_form(text, content_type)
  local mark = "\r\n--" .. content_type:match('[; ]boundary="?([^";]+)')
  local begins = text:sub(1, #mark - 2) == mark:sub(3)
  local last = begins and #mark - 2 or select(2, text:find(mark, 1, true))
  while last ~= nil do
    local first = select(2, text:find("\r\n\r\n", last, true))
    local stop, after = text:find(mark, first or #text, true)
    if stop == nil then return nil end
    local pattern = '\r\n[Cc]ontent%-[Dd]isposition:[^\r\n]-; ?name="?([^\r";]*)'
    if text:sub(last, first):match(pattern) == "model" then return {first, stop} end
    last = after
  end
end

-- First and last position of what a request for the stream's usage replaces, and that request.
local function asking_usage(text, found)
  local options = found.stream_options
  if options == nil then
    local at = text:find("{", 1, true)
    return at + 1, at, '"stream_options":' .. OPTIONS .. ","
  end
  if text:sub(options[1], options[2]) == "null" then return options[1], options[2], OPTIONS end
  local inner = members(text, options[1]).include_usage
  if inner ~= nil then return inner[1], inner[2], "true" end
  local is_empty = text:find("^{%s*}", options[1])
  return options[1] + 1, options[1], '"include_usage":true' .. (is_empty and "" or ",")
end

-- The first message, which is the system prompt of most, or the beginning of the prompt.
local function prefix_of(text, found)
  local value = found.messages or found.instructions or found.prompt
  if value == nil then return nil end
  local first, last = value[1], value[2]
  local message = text:match("^%[[ \t\r\n]*(){", first)
  if message ~= nil then first, last = message, past_value(text, message) - 1 end
  return text:sub(first, math.min(last, first + LONGEST_PREFIX - 1))
end

local function read(handle, headers, body)
  local text = body:getBytes(0, body:length())
  local found, place = {}, nil
  if (headers:get("content-type") or ""):find("^multipart/form%-data") then
    place = in_form(text, headers:get("content-type"))
  else
    local after
    found, after = members(text, 1)
    assert(not text:find("[^ \t\r\n]", after))
    place = found.model
    if place ~= nil and text:byte(place[1]) ~= 34 then place = nil end
  end
  if place == nil then return nil end
  local prefix = prefix_of(text, found)
  if prefix ~= nil then
    handle:streamInfo():filterState():set(PREFIX, "envoy.hashable_string", prefix)
  end
  local model = text:sub(place[1] + 1, place[2] - 1)
  local target = handle:filterContext():get((model:gsub("\\/", "/")))
  local path = headers:get(":path"):match("^[^?]*")
  local stream, changed = found.stream, text
  if CAN_STREAM[path] and stream ~= nil and text:sub(stream[1], stream[2]) == "true" then
    local first, last, asking = asking_usage(text, found)
    if text:sub(first, last) ~= asking then
      changed = text:sub(1, first - 1) .. asking .. text:sub(last + 1)
      local more = first < place[1] and #changed - #text or 0
      place = {place[1] + more, place[2] + more}
      keep(handle, "removes", "1")
    end
  end
  if target ~= nil then
    changed = changed:sub(1, place[1]) .. target .. changed:sub(place[2])
    place = {place[1], place[1] + #target + 1}
    model = target
  end
  if changed ~= text then
    headers:replace("content-length", tostring(body:setBytes(changed)))
  end
  keep(handle, "first", place[1])
  keep(handle, "last", place[2])
  return model
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local body = handle:body()
  if body == nil then return refuse(handle, "400", "the request has no body") end
  headers = handle:headers()
  local reads, model = pcall(read, handle, headers, body)
  if not reads then return refuse(handle, "400", "the body is not a JSON object") end
  if model == nil then
    return refuse(handle, "400", "you must provide a model parameter: the name of an endpoint")
  end
  local name, version = model:match("^(%w[%w_.%-]*):?(%d*)$")
  if name == nil or #name > 128 or #version > 18 then
    local shown = model:gsub("[^\32-\33\35-\91\93-\126]", "?"):sub(1, 200)
    return refuse(handle, "404", "The model '" .. shown .. "' does not exist")
  end
  local timeout = headers:get(TIMEOUT)
  if timeout ~= nil then
    local milliseconds = math.ceil((tonumber(timeout) or 0) * 1000)
    if not (milliseconds > 0) then
      return refuse(handle, "400", "header " .. TIMEOUT .. " must be a positive number")
    end
    -- Envoy ends any stream by this header; by those of its own it would eject a slow server too.
    headers:replace("grpc-timeout", string.format("%.0fm", math.min(milliseconds, LONGEST_MS)))
  end
  keep(handle, "model", name)
  keep(handle, "began", string.format("%.0f", now(handle)))
  -- A copy has its route, which the split of the model that its body names would copy again.
  if headers:get(SHADOW) ~= nil then return end
  headers:replace("x-model", version == "" and name or name .. "~" .. version)
  handle:clearRouteCache()
end

local function tell(handle, name, number)
  handle:streamInfo():dynamicMetadata():set(USAGE, name, string.format("%.0f", number))
end

local function report(handle, usage, first)
  local function number(field, other)
    local text = usage:match('"' .. field .. '"%s*:%s*(%d+)')
      or usage:match('"' .. (other or field) .. '"%s*:%s*(%d+)')
    return tonumber(text or 0)
  end
  local output = number("completion_tokens", "output_tokens")
  local input = number("prompt_tokens", "input_tokens")
  tell(handle, "input", input)
  tell(handle, "cached", number("cached_tokens"))
  tell(handle, "output", output)
  tell(handle, "reasoning", number("reasoning_tokens"))
  tell(handle, "total", input + output)
  tell(handle, "unknown", 0)
  if first ~= nil and output > 1 then
    tell(handle, "per_token_us", (now(handle) - first) / (output - 1))
  end
end

-- What a caller gets of `text`, and the rest that waits for the end of its event.
local function without_usage(text)
  local kept, at = {}, 1
  while true do
    local stop = select(2, text:find("\r?\n\r?\n", at))
    if stop == nil then return table.concat(kept), text:sub(at) end
    local event = text:sub(at, stop)
    if not (event:find('"choices":%s*%[%s*%]') and event:find('"usage":%s*{')) then
      kept[#kept + 1] = event
    end
    at = stop + 1
  end
end

local byte, find, sub = string.byte, string.find, string.sub

-- Whether the event at `at` tells the role of who answers, and no text yet.
local function is_empty(text, at)
  local event = sub(text, at, (find(text, "\n\n", at, true)))
  return find(event, '"content":%s*""') or find(event, '"content":%s*null')
end

-- `count` and the events of tokens in `text`, which begins with an event or between two.
local function with_events(count, text)
  local at = find(text, "^data:") and 0 or find(text, "\ndata:", 1, true)
  while at ~= nil do
    if find(text, "^ ?{", at + 6) and (count > 0 or not is_empty(text, at + 1)) then
      count = count + 1
    end
    at = find(text, "\ndata:", at + 6, true)
  end
  return count
end

-- llama.cpp answers an input beyond the context of its model with 500, or with its own kind of 400,
-- and names an option of its own server, which is a setting of a GGUF model here.
local function translate_error(handle)
  local body = handle:body()
  local text = body == nil and "" or body:getBytes(0, body:length())
  local changed = text:gsub(
    "Start it with `%-%-embeddings`", "%0; a GGUF model needs `llm.pooling` in its endpoint's spec"
  )
  local tokens, limit = text:match("%((%d+) tokens%) is too large to process.*size: (%d+)%)")
  if tokens == nil and text:find('"exceed_context_size_error"', 1, true) then
    tokens, limit = text:match('"n_prompt_tokens":(%d+)'), text:match('"n_ctx":(%d+)')
  end
  local headers = handle:headers()
  if tokens ~= nil and limit ~= nil then
    local reason = "The input has " .. tokens .. " tokens, and the model takes " .. limit
      .. " at most. Send a shorter input."
    changed = '{"error":{"message":"' .. reason .. '","type":"invalid_request_error",'
      .. '"param":null,"code":"context_length_exceeded"}}'
    headers:replace(":status", "400")
  end
  if changed == text then return end
  headers:replace("content-length", tostring(body:setBytes(changed)))
end

function envoy_on_response(handle)
  local found = handle:streamInfo():dynamicMetadata():get(METADATA)
  if found == nil or found.model == nil then return end
  for _, name in ipairs({"input", "cached", "output", "reasoning", "total"}) do
    tell(handle, name, 0)
  end
  local headers = handle:headers()
  local status = headers:get(":status")
  if status == "400" or status == "500" or status == "501" then return translate_error(handle) end
  if status ~= "200" then return end
  local is_stream = (headers:get("content-type") or ""):find("^text/event%-stream") ~= nil
  tell(handle, "unknown", 1)
  local began, removes = tonumber(found.began), is_stream and found.removes ~= nil
  if removes then headers:remove("content-length") end
  local first, seen, waits, count, told, is_known = nil, "", "", 0, 0, false
  for chunk in handle:bodyChunks() do
    local size = chunk:length()
    if size > 0 then
      if first == nil then
        first = now(handle)
        if is_stream then tell(handle, "first_token_us", first - began) end
      end
      local text = chunk:getBytes(0, size)
      -- Whole events without usage, as most chunks are, pass as they are.
      local is_whole = byte(text, -1) == 10 and byte(text, -2) == 10
      local is_plain = is_whole and seen == "" and waits == ""
        and not find(text, 'usage"', 1, true)
      if removes and not is_plain then
        local passed
        passed, waits = without_usage(waits .. text)
        chunk:setBytes(passed)
      end
      if is_stream and not is_known then
        -- Of a stream that is cut, each event counts as a token; it is told now and then.
        count = with_events(count, text)
        if count <= TOLD_EACH or count - told >= TOLD_EACH then
          local metadata, number = handle:streamInfo():dynamicMetadata(), tostring(count)
          metadata:set(USAGE, "output", number)
          metadata:set(USAGE, "total", number)
          told = count
        end
      end
      if not is_plain then
        seen = seen .. text
        local at = seen:find('"usage"%s*:%s*{')
        if at == nil then
          seen = is_whole and "" or seen:sub(-32)
        else
          seen = seen:sub(at)
          local reads, stop = pcall(past_value, seen, (seen:find("{", 1, true)))
          if reads and stop ~= nil then
            report(handle, seen:sub(1, stop), is_stream and first or nil)
            is_known = true
            seen = seen:sub(stop)
          elseif #seen > LONGEST_USAGE then
            seen = ""
          end
        end
      end
    end
  end
end
"""
)
