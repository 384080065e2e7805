"""Lua library of the scripts: SHA-256, base64url, JSON."""

from typing import Final

SHA256_SOURCE: Final = r"""
local band, bxor, bnot = bit.band, bit.bxor, bit.bnot
local ror, rshift, tobit = bit.ror, bit.rshift, bit.tobit

local K, INITIAL = {}, {}
do
  local function fraction(value) return tobit(math.floor((value % 1) * 2 ^ 32)) end
  local candidate = 2
  while #K < 64 do
    local is_prime = true
    for divisor = 2, candidate ^ 0.5 do
      if candidate % divisor == 0 then is_prime = false break end
    end
    if is_prime then
      K[#K + 1] = fraction(candidate ^ (1 / 3))
      if #INITIAL < 8 then INITIAL[#INITIAL + 1] = fraction(candidate ^ 0.5) end
    end
    candidate = candidate + 1
  end
end

local words = {}
local function sha256(text)
  local padded = text .. "\128" .. ("\0"):rep(-(#text + 9) % 64) .. ("\0"):rep(4)
    .. string.char(
      math.floor(#text / 2 ^ 21) % 256, math.floor(#text / 2 ^ 13) % 256,
      math.floor(#text / 2 ^ 5) % 256, #text * 8 % 256)
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
"""`sha256(text)`: 64 hexadecimal digits, of texts below 512 MiB."""

BASE64_SOURCE: Final = r"""
local DIGITS = {}
do
  local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
  for i = 1, #alphabet do DIGITS[alphabet:byte(i)] = i - 1 end
end

local function base64url(text)
  local bytes, buffer, bits = {}, 0, 0
  for i = 1, #text do
    buffer, bits = buffer * 64 + DIGITS[text:byte(i)], bits + 6
    if bits >= 8 then
      bits = bits - 8
      local byte = math.floor(buffer / 2 ^ bits)
      bytes[#bytes + 1] = string.char(byte)
      buffer = buffer - byte * 2 ^ bits
    end
  end
  return table.concat(bytes)
end
"""
"""`base64url(text)`: the decoded bytes; an error for invalid text."""

JSON_SOURCE: Final = r"""
local DEEPEST = 32
local ESCAPES = {
  b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/",
}
local LITERALS = {["true"] = true, ["false"] = false}

local function utf8(code)
  if code < 0x80 then return string.char(code) end
  local last = 0x80 + code % 0x40
  if code < 0x800 then return string.char(0xC0 + math.floor(code / 0x40), last) end
  local middle = 0x80 + math.floor(code / 0x40) % 0x40
  if code < 0x10000 then
    return string.char(0xE0 + math.floor(code / 0x1000), middle, last)
  end
  local first = 0x80 + math.floor(code / 0x1000) % 0x40
  return string.char(0xF0 + math.floor(code / 0x40000), first, middle, last)
end

local function read_string(text, at)
  local parts = {}
  while true do
    local stop = assert(text:find('[%z\1-\31"\\]', at))
    parts[#parts + 1] = text:sub(at, stop - 1)
    local char = text:sub(stop, stop)
    if char == '"' then return table.concat(parts), stop + 1 end
    assert(char == "\\")
    at = stop + 2
    local escaped = text:sub(stop + 1, stop + 1)
    if escaped == "u" then
      local code = tonumber(assert(text:match("^%x%x%x%x", at)), 16)
      at = at + 4
      if code >= 0xD800 and code < 0xDC00 then
        local low = tonumber(assert(text:match("^\\u([dD][c-fC-F]%x%x)", at)), 16)
        code = 0x10000 + (code - 0xD800) * 0x400 + low - 0xDC00
        at = at + 6
      end
      parts[#parts + 1] = utf8(code)
    else
      parts[#parts + 1] = assert(ESCAPES[escaped])
    end
  end
end

local function past_spaces(text, at) return text:find("[^ \t\r\n]", at) or #text + 1 end

local read_value

local function read_items(text, at, depth, close, read_item)
  at = past_spaces(text, at)
  if text:sub(at, at) == close then return at + 1 end
  while true do
    at = past_spaces(text, read_item(past_spaces(text, at)))
    local char = text:sub(at, at)
    at = at + 1
    if char == close then return at end
    assert(char == ",")
  end
end

read_value = function(text, at, depth)
  assert(depth <= DEEPEST)
  local char = text:sub(at, at)
  local found = {}
  if char == '"' then return read_string(text, at + 1) end
  if char == "{" then
    return found, read_items(text, at + 1, depth, "}", function(start)
      assert(text:sub(start, start) == '"')
      local name, stop = read_string(text, start + 1)
      stop = past_spaces(text, stop)
      assert(text:sub(stop, stop) == ":")
      found[name], stop = read_value(text, past_spaces(text, stop + 1), depth + 1)
      return stop
    end)
  end
  if char == "[" then
    local count = 0
    return found, read_items(text, at + 1, depth, "]", function(start)
      count = count + 1
      found[count], start = read_value(text, start, depth + 1)
      return start
    end)
  end
  local word = text:match("^%l+", at)
  if word ~= nil then
    assert(word == "null" or LITERALS[word] ~= nil)
    return LITERALS[word], at + #word
  end
  local number = assert(text:match("^-?%d+%.?%d*[eE]?[+-]?%d*", at))
  return assert(tonumber(number)), at + #number
end

local function json(text)
  local value, at = read_value(text, past_spaces(text, 1), 1)
  assert(past_spaces(text, at) > #text)
  return value
end
"""
"""`json(text)`: the value, null as nil; an error for invalid JSON."""
