"""Lua scripts for the steps of a group member that Redis has to run atomically.

The live members of a group are in a sorted set, with the time at which their claim expires. A
consumer is named `MEMBER#EPOCH`, which distinguishes a rejoined member from its earlier session.
Consumers without an epoch in their name belong to other programs; active ones are not changed.
"""

from typing import Final

_COMMON: Final = """
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function pairs_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
local function is_of(name, prefix)
  return string.sub(name, 1, #prefix) == prefix
end
local function living(key, now)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. string.format('%.0f', now))
  return redis.call('ZRANGE', key, 0, -1)
end
local function is_stream(key)
  return redis.call('TYPE', key)['ok'] == 'stream'
end
"""

JOIN: Final = (
    _COMMON
    + """
-- KEYS: stream, members. ARGV: group, first id, consumer, prefix, timeout_ms
if not is_stream(KEYS[1]) then return redis.error_reply('NOTOPIC') end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2])
if made['err'] and not string.find(made['err'], 'BUSYGROUP') then return made end
local now = now_ms()
for _, name in ipairs(living(KEYS[2], now)) do
  if is_of(name, ARGV[4]) then redis.call('ZREM', KEYS[2], name) end
end
redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[5]), ARGV[3])
redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
)
"""Script that joins a group, replacing a member of the same name."""

LOOK: Final = (
    _COMMON
    + """
-- KEYS: stream, members. ARGV: group, consumer, prefix, timeout_ms, most
local now = now_ms()
local lives = {}
for _, name in ipairs(living(KEYS[2], now)) do
  if name ~= ARGV[2] and is_of(name, ARGV[3]) then return redis.error_reply('REPLACED') end
  lives[name] = true
end
redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[4]), ARGV[2])
local most, found = tonumber(ARGV[5]), {}
local has_more = 0
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = pairs_of(flat)
  local is_ours = string.find(one['name'], '#%x+$') ~= nil
  local is_gone = is_ours or tonumber(one['idle']) > tonumber(ARGV[4])
  if one['name'] ~= ARGV[2] and not lives[one['name']] and is_gone then
    if one['pending'] == 0 then
      if is_ours then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one['name']) end
    elseif #found >= most then
      has_more = 1
    else
      local left = most - #found
      local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', left, one['name'])
      if one['pending'] > #pending then has_more = 1 end
      for _, entry in ipairs(pending) do
        local got = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry[1])
        if got[1] then
          found[#found + 1] = {entry[1], got[1][2], entry[4] + 1}
        else
          redis.call('XACK', KEYS[1], ARGV[1], entry[1])
        end
      end
    end
  end
end
return {has_more, found}
"""
)
"""Script that sends a heartbeat, and claims pending records of dead members."""

DELIVER: Final = (
    _COMMON
    + """
-- KEYS: streams. ARGV: is strict, group, consumer, and two JSON arrays of pairs:
--   an input stream and ids, ascending; the stream of a record and the number of XADD's arguments,
--   which follow for each record
local done = {}
for _, input in ipairs(cjson.decode(ARGV[4])) do
  local key, ids = input[1], input[2]
  local mine = {}
  local listed = redis.call('XPENDING', key, ARGV[2], ids[1], ids[#ids], #ids + 256, ARGV[3])
  for _, entry in ipairs(listed) do mine[entry[1]] = true end
  for _, id in ipairs(ids) do
    if mine[id] or #redis.call('XPENDING', key, ARGV[2], id, id, 1, ARGV[3]) > 0 then
      done[#done + 1] = {key, id}
    elseif ARGV[1] == '1' then
      return redis.error_reply('NOTMINE ' .. key .. ' ' .. id)
    end
  end
end
for _, key in ipairs(KEYS) do
  if not is_stream(key) then return redis.error_reply('NOTOPIC ' .. key) end
end
local at = 6
for _, record in ipairs(cjson.decode(ARGV[5])) do
  redis.call('XADD', record[1], unpack(ARGV, at, at + record[2] - 1))
  at = at + record[2]
end
for _, one in ipairs(done) do redis.call('XACK', one[1], ARGV[2], one[2]) end
return #done
"""
)
"""Script that writes answers and acknowledges input, atomically, for this member's entries."""

LEAVE: Final = """
-- KEYS: stream, members. ARGV: group, consumer
redis.call('ZREM', KEYS[2], ARGV[2])
local left = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if not left['err'] and #left == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return 1
"""
"""Script that leaves a group; the next member that sends a heartbeat claims pending records."""

MOVE: Final = (
    _COMMON
    + """
-- KEYS: stream, members. ARGV: group, last id that counts as read, the member that may live
if not is_stream(KEYS[1]) then return redis.error_reply('NOTOPIC') end
for _, name in ipairs(living(KEYS[2], now_ms())) do
  if name ~= ARGV[3] then return redis.error_reply('RUNS ' .. name) end
end
redis.pcall('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2])
return 1
"""
)
"""Script that recreates a group at another offset, without pending records."""

LAG: Final = (
    _COMMON
    + """
-- KEYS: stream. ARGV: group
-- Returns: records that wait, id of the oldest of them
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = pairs_of(flat)
  if group['name'] == ARGV[1] then
    local last = group['last-delivered-id']
    local following = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
    local unread = group['lag']
    if not following[1] then
      unread = 0
    elseif not unread then
      -- The server does not know: by the time that they span, as if they were evenly spread.
      local info = pairs_of(redis.call('XINFO', 'STREAM', KEYS[1]))
      local function ms(id) return tonumber(string.match(id, '^%d+')) end
      local first, final = ms(info['first-entry'][1]), ms(info['last-generated-id'])
      local part = (final - ms(following[1][1])) / math.max(final - first, 1)
      unread = math.max(1, math.floor(info['length'] * part + 0.5))
    end
    local oldest = pending[2] or (following[1] and following[1][1]) or ''
    return {unread + pending[1], oldest}
  end
end
return redis.error_reply('NOGROUP')
"""
)
"""Script that returns the lag of a group."""
