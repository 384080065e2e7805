-- wrk script: POST the payloads of an index file in turn, then print the figures as JSON.
-- The index is what bench.payloads.write_payloads stores: file, path, headers, tab-separated.

local requests = {}
local nr = 0

local function add(line)
  local fields = {}
  for field in line:gmatch("[^\t]+") do fields[#fields + 1] = field end
  local file = assert(io.open(fields[1], "rb"))
  local body = file:read("*a")
  file:close()
  local headers = {}
  for i = 3, #fields do
    local name, value = fields[i]:match("^(.-): (.*)$")
    headers[name] = value
  end
  headers["Host"] = wrk.headers["Host"]
  requests[#requests + 1] = wrk.format("POST", fields[2], headers, body)
end

function init(args)
  for line in io.lines(args[1]) do add(line) end
end

function request()
  nr = nr % #requests + 1
  return requests[nr]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"wall_s":%.6f,"p50_us":%.0f,"p99_us":%.0f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
