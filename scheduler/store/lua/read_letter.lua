#!lua flags=no-writes
-- KEYS letter_prefix
-- ARGV letter_id
-- RETURNS: {name, value, ...}, or nil when there is no such letter
-- INCLUDE letter_fields
return letter_fields(letter_id, true)
