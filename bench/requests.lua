-- Sends the requests of a file in turn: each is a whole HTTP request, and a zero byte ends it.
-- If a request has the text below, which stands in its path, a number of the same length takes its place.

local NUMBER = "0000000000"

local requests = {}
local sent = 0
local is_numbered = false

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  for one in file:read("*a"):gmatch("(%Z+)%z") do
    requests[#requests + 1] = one
  end
  file:close()
  is_numbered = requests[1]:find(NUMBER, 1, true) ~= nil
end

function request()
  local one = requests[sent % #requests + 1]
  sent = sent + 1
  if is_numbered then
    return (one:gsub(NUMBER, string.format("%010d", sent), 1))
  end
  return one
end
