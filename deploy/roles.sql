-- The router's own role in a PostgreSQL cluster. Run it once on the primary, as a superuser, connected to the
-- database `postgres` (function grants count in one database only, and that is the one the router watches):
--
--   psql -d postgres -v control_password_file=FILE -f roles.sql
--
-- FILE holds the password on one line. Where nobody can list this machine's processes (an init container),
-- -v control_password=... does as well.
-- It may be run again: it then only sets the password anew. PostgreSQL 15 or newer.
\set ON_ERROR_STOP on
-- Whatever the database's own settings say: no name here means anything but PostgreSQL's own.
SET search_path = pg_catalog;
\if :{?control_role}
\else
  \set control_role pointsman_control
\endif
\if :{?control_password_file}
  \set control_password `cat :'control_password_file'`
\endif

SELECT pg_catalog.format('CREATE ROLE %I', :'control_role')
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'control_role') \gexec

-- No rights on anyone's data: this role watches and, where promote mode is on, moves the primary role.
-- The password must not be in what this server logs of statements: failed ones (as on a standby), changes, slow
-- ones. Only a superuser can keep it out.
SET log_min_error_statement = panic;
SET log_statement = none;
SET log_min_duration_statement = -1;
SET log_min_duration_sample = -1;
SET log_transaction_sample_rate = 0;
SET pg_stat_statements.track_utility = off;
ALTER ROLE :"control_role" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT
  CONNECTION LIMIT 20 PASSWORD :'control_password';
RESET log_min_error_statement;
RESET log_statement;
RESET log_min_duration_statement;
RESET log_min_duration_sample;
RESET log_transaction_sample_rate;
RESET pg_stat_statements.track_utility;
GRANT CONNECT ON DATABASE postgres TO :"control_role";

-- Watching: replication state, lag, settings. (Through pg_read_all_settings it can read primary_conninfo, and with
-- it the password of the replication role, unless that one lies in a passfile.)
GRANT pg_monitor TO :"control_role";

-- Ending a tenant's statement whose caller is gone, and sessions on a primary that is to be left.
GRANT pg_signal_backend TO :"control_role";

-- Consistency tokens across a failover: where a timeline was left stands in a file that only superusers may read. This
-- function reads nothing else; without it a token from before a failover that had no synchronous standby is refused.
CREATE SCHEMA IF NOT EXISTS pointsman;
GRANT USAGE ON SCHEMA pointsman TO :"control_role";
CREATE OR REPLACE FUNCTION pointsman.timeline_history(timeline integer) RETURNS text
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS 'SELECT pg_read_file(''pg_wal/'' || lpad(upper(to_hex(timeline)), 8, ''0'') || ''.history'', 0, 1000000, true)';
REVOKE ALL ON FUNCTION pointsman.timeline_history(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pointsman.timeline_history(integer) TO :"control_role";

-- Promote mode only: fence (a standby stops listening to the old primary), promote, point the rest at the new one.
-- Leave this part out where Patroni or a cloud service promotes.
GRANT ALTER SYSTEM ON PARAMETER primary_conninfo, synchronous_standby_names, default_transaction_read_only
  TO :"control_role";
GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO :"control_role";
GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer) TO :"control_role";
-- Creating replication slots would need the REPLICATION attribute, and with it the right to copy every byte of the
-- cluster: so it is not given. Create the slots of all standbys on every server beforehand, or work without slots.
