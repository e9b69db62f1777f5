-- Reads a filter as the router will: fails unless it is an SQL/JSON path predicate. A predicate
-- gives one boolean or null for any document, so an empty one tells predicates from paths.
--
-- filter text
-- One row: canonical (text), verdict (boolean or null)
SELECT %(filter)s::text::jsonpath::text AS canonical,
       jsonb_path_match('{}', %(filter)s::text::jsonpath, '{}', false) AS verdict
