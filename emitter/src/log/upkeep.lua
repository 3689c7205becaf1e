
trim(journal, previous, total, tonumber(ARGV[5]), now, ARGV[6])
if is_due then
  pcall('EXPIRE', journal, ARGV[6] + math.ceil(ARGV[6] / 16))
  pcall('SET', KEYS[1], previous .. ':' .. size .. ':' .. clock[1], 'EX', ARGV[3])
end
return reply
