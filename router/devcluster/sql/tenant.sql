-- One tenant: a login role and, unless it shares one, a database of its own, closed to every other tenant. Run on the
-- primary, as a superuser, connected to the database `postgres`; it may be run again. Then tenant_database.sql, in
-- the tenant's database. `pointsman tenant init NAME` runs both, with the values of the configuration.
--
--   psql -d postgres -v tenant=acme -v password_file=FILE -v connection_limit=50 -f tenant.sql
--
-- FILE holds the password on one line; -v password=... does as well, but shows it to whoever may list processes.
-- connection_limit: the sum of the tenant's connections of all routers to one server, plus 2.
-- isolation: database (unless given), schema or registered, as in the router's configuration. login, database: as there;
-- the tenant's name unless given. role: registered only; the role that the login's connections take.
\set ON_ERROR_STOP on
-- Whatever the database's own settings say: no name here means anything but PostgreSQL's own.
SET search_path = pg_catalog;
\if :{?connection_limit}
\else
  \set connection_limit 50
\endif
\if :{?isolation}
\else
  \set isolation database
\endif
\if :{?login}
\else
  \set login :tenant
\endif
\if :{?database}
\else
  \set database :tenant
\endif
\if :{?role}
\else
  \set role :login
\endif
\if :{?password_file}
  \set password `cat :'password_file'`
\endif

SELECT pg_catalog.format('CREATE ROLE %I', :'login')
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'login') \gexec
SELECT pg_catalog.format('CREATE ROLE %I', :'role')
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'role') \gexec

-- INHERIT is for pg_database_owner only, which owns the schema public: up to PostgreSQL 15 the owner of a database
-- may not create tables there without it. Grant this role no membership in another one.
-- A login whose connections take a role has no rights but that one's.
-- The password must not be in what this server logs of statements: failed ones (as on a standby), changes, slow
-- ones. Only a superuser can keep it out.
SET log_min_error_statement = panic;
SET log_statement = none;
SET log_min_duration_statement = -1;
SET log_min_duration_sample = -1;
SET log_transaction_sample_rate = 0;
SET pg_stat_statements.track_utility = off;
SELECT pg_catalog.format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS %s'
                         ' PASSWORD %L',
              :'login', CASE WHEN :'role' = :'login' THEN 'INHERIT' ELSE 'NOINHERIT' END, :'password') \gexec
RESET log_min_error_statement;
RESET log_statement;
RESET log_min_duration_statement;
RESET log_min_duration_sample;
RESET log_transaction_sample_rate;
RESET pg_stat_statements.track_utility;
SELECT pg_catalog.format('ALTER ROLE %I CONNECTION LIMIT %s', :'login', (:'connection_limit')::integer) \gexec
SELECT pg_catalog.format('ALTER ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS',
                         :'role')
 WHERE :'role' <> :'login' \gexec
SELECT pg_catalog.format('GRANT %I TO %I', :'role', :'login')
 WHERE :'role' <> :'login' \gexec

-- A tenant cannot raise temp_file_limit itself; the timeout it can, it only catches accidents.
ALTER ROLE :"login" SET temp_file_limit = '1GB';
ALTER ROLE :"login" SET idle_in_transaction_session_timeout = '60s';

-- template0: nothing an administrator may have added to template1 gets into a tenant's database. A tenant owns a
-- database only if it has it alone.
SELECT pg_catalog.format('CREATE DATABASE %I %s TEMPLATE template0 ENCODING ''UTF8''', :'database',
              CASE WHEN :'isolation' = 'database' THEN pg_catalog.format('OWNER %I', :'login') ELSE '' END)
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = :'database') \gexec

-- The owner keeps its own right to connect; everyone else loses the one PostgreSQL gives by default.
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
SELECT pg_catalog.format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO %I', :'database', :'login')
 WHERE :'isolation' <> 'database' \gexec
SELECT pg_catalog.format('ALTER ROLE %I IN DATABASE %I SET search_path = %I', :'login', :'database', :'tenant')
 WHERE :'isolation' = 'schema' \gexec
