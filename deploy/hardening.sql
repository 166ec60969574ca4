-- Closes the databases every cluster starts with to all but named roles. By default any login role may connect to
-- them, make temporary tables there and read the catalogues. Run as a superuser after roles.sql.
-- Not part of roles.sql because on a shared cluster others may rely on that access: grant it to them by name first.
--
--   psql -d postgres -f hardening.sql
\set ON_ERROR_STOP on
-- Whatever the database's own settings say: no name here means anything but PostgreSQL's own.
SET search_path = pg_catalog;

REVOKE CONNECT, TEMPORARY ON DATABASE postgres FROM PUBLIC;
REVOKE CONNECT, TEMPORARY ON DATABASE template1 FROM PUBLIC;
