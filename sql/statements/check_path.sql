-- Reads an SQL/JSON path; fails where it is none.
--
-- path text
SELECT %(path)s::text::jsonpath::text
